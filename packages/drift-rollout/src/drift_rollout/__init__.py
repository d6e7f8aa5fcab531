"""Sample correction dialogues once from a frozen policy."""

from drift_rollout.engine import Completion, Engine, Request, Sampling, ScriptedEngine
from drift_rollout.journal import Journal
from drift_rollout.problems import Problem, ProblemSet, load_problems, make_problem, problem_set
from drift_rollout.prompts import TEMPLATES, PromptTemplate
from drift_rollout.protocol import Dialogue, Protocol, advance
from drift_rollout.sampler import RolloutConfig, sample, sample_to_journal
from drift_rollout.verifiers.choice import ChoiceVerifier, choice_target
from drift_rollout.verifiers.equality import MathGuards
from drift_rollout.verifiers.exact import ExactVerifier
from drift_rollout.verifiers.math import MathOptions, MathVerifier
from drift_rollout.verifiers.numeric import NumericVerifier
from drift_rollout.verify import AnswerVerifier, Verified, Verifier, extract_answer

__all__ = [
    "TEMPLATES",
    "AnswerVerifier",
    "ChoiceVerifier",
    "Completion",
    "Dialogue",
    "Engine",
    "ExactVerifier",
    "Journal",
    "MathGuards",
    "MathOptions",
    "MathVerifier",
    "NumericVerifier",
    "Problem",
    "ProblemSet",
    "PromptTemplate",
    "Protocol",
    "Request",
    "RolloutConfig",
    "Sampling",
    "ScriptedEngine",
    "Verified",
    "Verifier",
    "advance",
    "choice_target",
    "extract_answer",
    "load_problems",
    "make_problem",
    "problem_set",
    "sample",
    "sample_to_journal",
]
