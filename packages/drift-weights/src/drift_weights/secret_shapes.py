"""The shapes of providers' keys and tokens, and what tells a secret from a placeholder.

A form is written in the syntax that RE2 and Python share; its one group is what was drawn at random.
[^\\W_] is a letter or a digit, [\\w-] a character of URL-safe base64.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What one kind of secret looks like."""

    what: str
    mark: str
    """A cheap form that is found wherever `form` is."""
    form: str
    pattern: re.Pattern[str]
    """`form` within its bounds."""
    real: Callable[[str], bool]
    """Whether what the group holds is more than a placeholder."""


def varied(drawn: str) -> bool:
    """Not xxxx, 123456 or the example of a provider's documentation."""
    if "EXAMPLE" in drawn.upper() or _JWT_EXAMPLE in drawn:
        return False
    steps = sum(abs(ord(a) - ord(b)) <= 1 for a, b in pairwise(drawn.lower()))
    shares = [count / len(drawn) for count in Counter(drawn).values()]
    return 2 * steps < len(drawn) and -sum(share * math.log2(share) for share in shares) > 2.5


def scrambled(drawn: str) -> bool:
    """Varied, and not words put together: capitals and digits stand where names do not have them."""
    plain = re.sub("[^A-Za-z0-9]", "", drawn)
    # inCamelCase reads as incamelcase.
    plain = re.sub("(?<![A-Z0-9])[A-Z](?=[a-z])", lambda capital: capital[0].lower(), plain)
    changes = sum((a.isdigit(), a.isupper()) != (b.isdigit(), b.isupper()) for a, b in pairwise(plain))
    return varied(drawn) and 8 * changes >= len(plain)


def mixed_case(drawn: str) -> bool:
    """Varied, and no hash in hexadecimal digits."""
    return varied(drawn) and drawn.lower() != drawn != drawn.upper()


def password(drawn: str) -> bool:
    """No placeholder, as in user:password@host, {user}:{password}@host and user:$PASS@host."""
    variable = re.match(r"[{<\[]|%[s({]|\$[{(A-Z]|\*\*", drawn)
    letters = re.sub("[^a-z]", "", drawn.lower())
    # As in docker://image:22.04@sha256:…
    version = re.fullmatch(r"v?\d+(?:\.\d+)+[\w-]*", drawn)
    return not variable and not version and letters not in _NO_PASSWORDS and len(set(drawn)) > 2


_JWT_EXAMPLE = "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lI"
"""{"sub":"1234567890","name":"John Doe", as documentation has it."""
_NO_PASSWORDS = frozenset(
    {"changeme", "guest", "mypass", "mypassword", "pass", "passwd", "password", "postgres", "pw", "pwd"}
    | {"secret", "token", "username", "userpass", "yourpassword", "yourtoken"}
)
_LEFT = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=\\u00[0-9a-f]{2})|(?<=%[0-9A-Fa-f]{2}))"
"""No letter or digit before it, unless that ends an escape of JSON or of a URL."""
_RIGHT = r"(?![A-Za-z0-9])"
_GAP = r"""[\\"'\])\s]{0,6}"""
"""Between a name, its sign of equality and its value, quotes escaped or not."""
_BREAK = r"""(?:\s|\\[nrt]|["'+,])"""
"""Between the lines of a key, in a file or in a string of code."""

_PREFIXED = (
    ("a Hugging Face token", r"(?:hf|api_org)_([^\W_]{30,64})"),
    ("an Anthropic key", r"sk-ant-([\w-]{32,})"),
    ("an OpenAI key", r"sk-(?:proj|svcacct|admin|None)-([\w-]{40,})"),
    ("an OpenAI key", r"sk-([\w-]{20,128}T3BlbkFJ[\w-]{20,})"),
    ("an OpenRouter key", r"sk-or-v1-([0-9a-f]{64})"),
    ("a key of OpenAI's shape", r"sk-([^\W_]{32,64})"),
    ("a Google API key", r"AIza([\w-]{35})"),
    ("a Google API key", r"AQ\.([\w-]{40,})"),
    ("a Google OAuth secret", r"GOCSPX-([\w-]{28})"),
    ("a Google OAuth token", r"(?:ya29\.|1//0)([\w-]{30,})"),
    ("an AWS access key id", r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)([A-Z0-9]{16})"),
    ("an Azure storage key", r"AccountKey=([A-Za-z0-9+/]{86}==)"),
    ("an Azure shared access signature", r"sig(?:=|%3D)([A-Za-z0-9%+/]{43,64}(?:%3D|=))"),
    ("a GitHub token", r"gh[oprsu]_([^\W_]{36,255})"),
    ("a GitHub token", r"github_pat_([^\W_]{22}_[^\W_]{59})"),
    (
        "a GitLab token",
        r"(?:gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas|ffct)-|GR1348941)([\w-]{20,})",
    ),
    ("a Slack token", r"(?i:xox[a-z]|xapp)-([\w-]{20,})"),
    ("a Slack webhook", r"hooks\.slack\.com/(?:services|workflows|triggers)/\w{8,16}/\w{8,20}/(\w{16,64})"),
    ("a Stripe key", r"[rs]k_live_([^\W_]{20,128})"),
    ("a Twilio key", r"(?:AC|SK)([0-9a-f]{32})"),
    ("a SendGrid key", r"SG\.([\w-]{22}\.[\w-]{43})"),
    ("an npm token", r"npm_([^\W_]{36})"),
    ("an npm token", r":_authToken=([\w+/=.-]{20,128})"),
    ("a PyPI token", r"pypi-(Ag[\w-]{60,})"),
    ("a DigitalOcean token", r"do[opr]_v1_([0-9a-f]{64})"),
    ("a Databricks token", r"dapi([0-9a-f]{32})"),
    ("a Weights & Biases key", r"wandb_v1_([\w-]{40,})"),
    ("a Replicate token", r"r8_([^\W_]{37})"),
    ("a Groq key", r"gsk_([^\W_]{40,64})"),
    ("an xAI key", r"xai-([^\W_]{40,128})"),
    ("a Perplexity key", r"pplx-([^\W_]{40,64})"),
    ("a Together key", r"tgp_v1_([\w-]{43})"),
    ("an NVIDIA key", r"nvapi-([\w-]{60,80})"),
    ("a Cerebras key", r"csk-([a-z0-9]{40,64})"),
    ("a LangSmith key", r"lsv2_(?:pt|sk)_([0-9a-f]{32}_[0-9a-f]{10})"),
    ("a Pinecone key", r"pcsk_([\w-]{40,})"),
    ("a Docker token", r"dckr_pat_([\w-]{27})"),
    ("a Vault token", r"hvs\.([\w-]{24,})"),
    ("an Artifactory key", r"AKCp([^\W_]{60,80})"),
    ("a Square secret", r"sq0(?:csp|atp)-([\w-]{22,43})"),
    ("a Discord webhook", r"discord(?:app)?\.com/api/(?:v\d{1,2}/)?webhooks/\d{17,20}/([\w-]{60,80})"),
    ("a JSON web token", r"eyJ[\w-]{10,1000}\.(e[wy][\w-]{10,}\.[\w-]{20,})"),
)
"""Known by how they begin."""
_LOOSE = (
    ("a Fireworks key", r"fw_[^\W_]{8}", r"fw_([^\W_]{20,32})"),
    ("a Telegram bot token", r"\d:[\w-]{35}", r"(?:bot)?\d{8,10}:([\w-]{35})"),
    (
        "a Discord bot token",
        r"\.[\w-]{6}\.[\w-]{27}",
        r"([MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40})",
    ),
    ("a Mailchimp key", r"[0-9a-f]{8}-us\d", r"([0-9a-f]{32})-us\d{1,2}"),
    ("a Mailgun key", r"-[0-9a-f]{8}-[0-9a-f]{8}", r"([0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8})"),
)
"""Their beginning says little or is drawn at random, too; so a name in camel case might look like them."""
_NAMED = (
    (
        "a private key",
        "PRIVATE KEY",
        r"BEGIN (?:[A-Z0-9]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
        rf"(?:{_BREAK}+[A-Za-z-]{{4,20}}: [^\n\\]{{0,80}}){{0,6}}{_BREAK}*([A-Za-z0-9+/]{{32}})",
        varied,
    ),
    (
        "a private key",
        r"Private-Lines: \d",
        rf"Private-Lines: \d{{1,4}}{_BREAK}+([A-Za-z0-9+/]{{32}})",
        varied,
    ),
    (
        "an AWS secret key",
        r"(?i:aws.{0,20}?(?:key|pwd|pw|pass|token|secret)|secret_?access_?key)",
        r"(?i:aws.{0,20}?(?:key|pwd|pw|pass|token|secret)|secret_?access_?key).{0,20}?"
        r"[^A-Za-z0-9+/]([A-Za-z0-9+/]{40})(?:[^A-Za-z0-9+/=]|$)",
        mixed_case,
    ),
    (
        "a Weights & Biases key",
        r"(?i:wandb(?:\.ai)?[\W_]{0,4}(?:api[\W_]?)?(?:key|login|password|token))",
        r"(?i:wandb(?:\.ai)?[\W_]{0,4}(?:api[\W_]?)?(?:key|login|password|token)).{0,30}?\b([0-9a-f]{40})\b",
        varied,
    ),
    ("a Mailgun key", r"key-[0-9a-f]{32}", r"(?:(?i:mailgun).{0,40}?|api:)key-([0-9a-f]{32})\b", varied),
    (
        "a key in an authorization header",
        r"(?i:bearer|basic|token)\s{1,3}[\w.~+/=-]{20}",
        rf"(?i:authorization){_GAP}[:=]{_GAP}(?i:bearer|basic|token)\s{{1,3}}([\w.~+/=-]{{20,}})",
        scrambled,
    ),
    (
        "a key beside its name",
        rf"(?i:key|secret|token|passw(?:or)?d|pwd){_GAP}[:=][=>]?{_GAP}[\w-]{{32}}",
        r"(?i:(?:api|access|auth|account|client|master|private|secret)[_-]?(?:key|secret|token)|passw(?:or)?d|pwd)"
        rf"{_GAP}(?::=|=>|:|=){_GAP}([\w-]{{32,128}})",
        scrambled,
    ),
    (
        "a password in a URL",
        r":\\?/\\?/[^\s@/]{1,200}@",
        r"""[A-Za-z][A-Za-z0-9+.-]{1,20}:\\?/\\?/[^\s:@/?#"'<>]{0,64}:([^\s@/?#"'<>]{4,128})@[\w\[]""",
        password,
    ),
)
"""Known by what stands before them; these bring their own bounds."""


def _shape(what: str, mark: str, form: str, real: Callable[[str], bool], *, bounded: bool) -> Shape:
    bounds = (_LEFT, _RIGHT) if bounded else ("", "")
    pattern = re.compile(f"{bounds[0]}{form}{bounds[1]}", re.ASCII)
    return Shape(what=what, mark=mark, form=form, pattern=pattern, real=real)


def _mark(form: str) -> str:
    """What stands before the group, and the first characters of it."""
    lead, group = re.split(r"\((?!\?)", form)[:2]
    first, _, times = group.partition("{")
    return f"{lead}{first}{{{min(16, int(re.split('[,}]', times)[0]))}}}"


SHAPES = (
    *(_shape(what, _mark(form), form, varied, bounded=True) for what, form in _PREFIXED),
    *(_shape(what, mark, form, scrambled, bounded=True) for what, mark, form in _LOOSE),
    *(_shape(what, mark, form, real, bounded=False) for what, mark, form, real in _NAMED),
)
"""The narrower before the wider."""
MARKS = "|".join(f"(?:{shape.mark})" for shape in SHAPES)
"""For one pass over all text; all forms together outgrow RE2's automaton and are a hundred times slower."""
NAMING = re.compile(r"(?i)aws|wandb|mailgun|key|secret|token|passw|pwd|auth")
"""Names that a value beside them is read with."""
