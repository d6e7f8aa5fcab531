"""Secrets of every provider's published shape, drawn at random when a test runs; none stands in a file.

What is constant in a shape is written so that no scanner of secrets takes this file for a leak.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

LETTERS = string.ascii_letters
ALNUM = LETTERS + string.digits
URLSAFE = ALNUM + "-_"
BASE64 = ALNUM + "+/"
HEX = "0123456789abcdef"
DASHES = "-" * 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A text that holds a secret, and the part of it that nobody may see."""

    text: str
    secret: str


class Draw:
    """Random characters, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def __call__(self, length: int, alphabet: str = ALNUM) -> str:
        return "".join(self.random.choices(alphabet, k=length))

    def of(self, *choices: str) -> str:
        return self.random.choice(choices)

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


Maker = Callable[[Draw], Made]


def beginning(*starts: str, length: int, alphabet: str = ALNUM, end: str = "") -> Maker:
    """A token that is a known beginning and random characters."""

    def make(draw: Draw) -> Made:
        secret = draw(length, alphabet)
        return Made(text=draw.of(*starts) + secret + end, secret=secret)

    return make


def joined(*parts: tuple[int, str] | str) -> Maker:
    """A token of random parts (length and alphabet) and constant ones; the longest random part is it."""

    def make(draw: Draw) -> Made:
        made = [part if isinstance(part, str) else draw(*part) for part in parts]
        drawn = [text for text, part in zip(made, parts, strict=True) if not isinstance(part, str)]
        return Made(text="".join(made), secret=max(drawn, key=len))

    return make


def jwt(draw: Draw) -> Made:
    """Header and payload are JSON, the signature is random."""
    spaced = draw.of("yes", "no") == "yes"
    separators = (", ", ": ") if spaced else (",", ":")
    header = json.dumps({"alg": "HS256", "typ": "JWT"}, separators=separators)
    payload = json.dumps({"sub": draw(12), "exp": draw.between(1, 2**31)}, separators=separators)
    parts = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, payload)]
    signature = draw(draw.between(43, 342), URLSAFE)
    return Made(text=".".join([*parts, signature]), secret=signature)


def pem(kind: str, headers: str = "") -> Maker:
    """A private key in a file, or in a string of JSON or code; its lines are 64 characters long."""

    def make(draw: Draw) -> Made:
        lines = [draw(64, BASE64) for _ in range(3)]
        text = (
            f"{DASHES}BEGIN {kind}{DASHES}\n{headers}" + "\n".join(lines) + f"\n{DASHES}END {kind}{DASHES}"
        )
        return Made(text=json.dumps(text) if draw.of("json", "file") == "json" else text, secret=lines[0])

    return make


def putty(draw: Draw) -> Made:
    """A key file of PuTTY."""
    secret = draw(64, BASE64)
    head = f"PuTTY-User-Key-File-{draw.of('2', '3')}: ssh-rsa\nEncryption: none\n"
    return Made(text=f"{head}Private-Lines: 14\n{secret}\n", secret=secret)


def named(name: str, length: int, alphabet: str) -> Maker:
    """A value that is known to be a secret only by its name."""

    def make(draw: Draw) -> Made:
        secret = draw(length, alphabet)
        before, after = draw.of('="|"', "='|'", '": "|"', '\\": \\"|\\"').split("|")
        return Made(text=f"{name}{before}{secret}{after}", secret=secret)

    return make


def address(scheme: str, host: str) -> Maker:
    """A URL with a password."""

    def make(draw: Draw) -> Made:
        secret = draw(16, ALNUM + "-_.~!*")
        return Made(text=f"{scheme}://{draw(6, LETTERS)}:{secret}@{host}/path", secret=secret)

    return make


PRIVATE = "PRIVATE" + " KEY"
MAKERS: dict[str, Maker] = {
    "Hugging Face": beginning("hf_", "api_org_", length=34, alphabet=LETTERS),
    "Anthropic": beginning(
        "sk-ant-api03-", "sk-ant-admin01-", "sk-ant-oat01-", length=95, alphabet=URLSAFE
    ),
    "OpenAI project": beginning("sk-proj-", "sk-svcacct-", "sk-admin-", length=124, alphabet=URLSAFE),
    "OpenAI classic": joined("sk-", (20, ALNUM), "T3Blbk", "FJ", (20, ALNUM)),
    "OpenAI project classic": joined("sk-proj-", (24, URLSAFE), (20, ALNUM), "T3Blbk", "FJ", (20, ALNUM)),
    "like OpenAI": beginning("sk-", length=48),
    "DeepSeek": beginning("sk-", length=32, alphabet=HEX),
    "OpenRouter": beginning("sk-or-v1-", length=64, alphabet=HEX),
    "Google API": beginning("AI" + "za", length=35, alphabet=URLSAFE),
    "Google API, new": beginning("AQ.Ab", length=48, alphabet=URLSAFE),
    "Google client": beginning("GOC" + "SPX-", length=28, alphabet=URLSAFE),
    "Google OAuth": beginning("ya29.", "1//0", length=120, alphabet=URLSAFE),
    "AWS id": beginning("AK" + "IA", "AS" + "IA", length=16, alphabet=string.ascii_uppercase + "234567"),
    "AWS secret": named("aws_secret_access_key", 40, BASE64),
    "AWS secret in JSON": named('"SecretAccessKey', 40, BASE64),
    "Azure storage": beginning("AccountName=x;Account" + "Key=", length=86, alphabet=BASE64, end="=="),
    "Azure signature": beginning("https://x.net/c?se=1&sig=", length=43, end="%3D"),
    "GitHub": beginning("ghp_", "gho_", "ghu_", "ghs_", "ghr_", length=36),
    "GitHub fine": joined("github_pat_", (22, ALNUM), "_", (59, ALNUM)),
    "GitLab": beginning("glpat-", "gldt-", "glrt-", "glft-", "glsoat-", length=20, alphabet=URLSAFE),
    "GitLab CI": joined("glcbt-", (2, HEX), "_", (20, URLSAFE)),
    "GitLab routable": joined("glpat-", (40, URLSAFE), ".", (2, ALNUM), ".", (9, ALNUM)),
    "Slack": joined("xoxb-", (12, string.digits), "-", (13, string.digits), "-", (24, ALNUM)),
    "Slack user": joined("xoxp-", (11, string.digits), "-", (11, string.digits), "-", (32, HEX)),
    "Slack webhook": joined(
        "https://hooks.slack.com/services/T", (8, ALNUM), "/B", (10, ALNUM), "/", (24, ALNUM)
    ),
    "Stripe": beginning("sk_live_", "rk_live_", length=24),
    "Stripe, new": beginning("sk_live_", length=99),
    "Twilio": beginning("AC", "SK", length=32, alphabet=HEX),
    "SendGrid": joined("SG.", (22, URLSAFE), ".", (43, URLSAFE)),
    "npm": beginning("npm_", length=36),
    "npm file": beginning("//npm.example.org/:_auth" + "Token=", length=36, alphabet=HEX),
    "PyPI": joined("pypi-", "AgEIcHlwaS5", "vcmc", (150, URLSAFE)),
    "DigitalOcean": beginning("dop_v1_", "doo_v1_", length=64, alphabet=HEX),
    "Databricks": beginning("dapi", length=32, alphabet=HEX),
    "Databricks, numbered": beginning("dapi", length=32, alphabet=HEX, end="-2"),
    "Weights & Biases": beginning("wandb_v1_", length=77, alphabet=ALNUM + "_"),
    "Weights & Biases, old": beginning("WANDB_API_KEY=", "wandb login ", length=40, alphabet=HEX),
    "Weights & Biases, file": joined("machine api.wandb.ai\n  login user\n", "wandb password ", (40, HEX)),
    "Replicate": beginning("r8_", length=37),
    "Groq": beginning("gsk_", length=52),
    "xAI": beginning("xai-", length=80),
    "Perplexity": beginning("pplx-", length=48),
    "Fireworks": beginning("fw_", length=24),
    "Together": beginning("tgp_v1_", length=43, alphabet=URLSAFE),
    "NVIDIA": beginning("nvapi-", length=64, alphabet=URLSAFE),
    "Cerebras": beginning("csk-", length=48, alphabet=string.ascii_lowercase + string.digits),
    "LangSmith": joined("lsv2_pt_", (32, HEX), "_", (10, HEX)),
    "Pinecone": joined("pcsk_", (6, ALNUM), "_", (63, ALNUM)),
    "Docker": beginning("dckr_pat_", length=27, alphabet=URLSAFE),
    "Vault": beginning("hvs.", length=90, alphabet=URLSAFE),
    "Artifactory": beginning("AKC" + "p", length=69),
    "Square": beginning("sq0csp-", length=43, alphabet=URLSAFE),
    "Telegram": joined((10, "123456789"), ":AA", (33, URLSAFE)),
    "Telegram URL": joined("https://api.telegram.org/bot", (9, "123456789"), ":AA", (33, URLSAFE)),
    "Discord": joined("MT", (22, ALNUM), ".", (6, URLSAFE), ".", (38, URLSAFE)),
    "Discord webhook": joined("https://discord.com/api/webhooks/", (18, "123456789"), "/", (68, URLSAFE)),
    "Mailgun": beginning("mailgun: key-", "api:key-", length=32, alphabet=HEX),
    "Mailgun, new": joined((32, HEX), "-", (8, HEX), "-", (8, HEX)),
    "Mailchimp": joined((32, HEX), "-us14"),
    "JWT": jwt,
    "Bearer": beginning("Authorization: Bearer ", '"authorization": "bearer ', length=40),
    "API key": named("MISTRAL_API_KEY", 32, ALNUM),
    "API key, hex": named("AZURE_OPENAI_API_KEY", 32, HEX),
    "IBM": named("ibm_cloud_api_key", 44, URLSAFE),
    "IBM storage": named("secret_access_key", 48, HEX),
    "SoftLayer": named("softlayer_api_key", 64, HEX),
    "Cloudant": named("cloudant_password", 64, HEX),
    "Cloudant URL": joined("https://account:", (64, HEX), "@account.cloudant.com"),
    "URL": address("https", "example.org"),
    "database URL": address("postgresql+psycopg", "10.0.0.1:5432"),
    "PKCS8": pem(PRIVATE),
    "encrypted PKCS8": pem("ENCRYPTED " + PRIVATE),
    "RSA": pem("RSA " + PRIVATE, "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n"),
    "EC": pem("EC " + PRIVATE),
    "DSA": pem("DSA " + PRIVATE),
    "OpenSSH": pem("OPENSSH " + PRIVATE),
    "PGP": pem("PGP " + PRIVATE + " BLOCK", "Version: GnuPG v2\n\n"),
    "PuTTY": putty,
}


def made_up(provider: str) -> st.SearchStrategy[Made]:
    """Secrets of one provider; shrinking makes none of them less random."""
    return st.integers(0, 2**64).map(lambda seed: MAKERS[provider](Draw(seed)))
