"""Secrets never reach what the doctor shows; what a reader needs stays."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cria.redaction import REDACTED, redact, redact_command

SECRET = st.text(string.ascii_letters + string.digits + "+/", min_size=12, max_size=40)
OPTIONS = st.sampled_from(
    ["--api-key", "--hf-token", "--token", "--ssl-key-password", "--secret", "--auth-token"]
)
VARIABLES = st.sampled_from(
    ["HF_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"]
)


@given(option=OPTIONS, secrets=st.lists(SECRET, min_size=1, max_size=3))
def test_values_of_secret_options_are_hidden(option: str, secrets: list[str]) -> None:
    words = ["vllm", "serve", "model", option, *secrets, "--port", "8000"]
    for shown in (" ".join(redact_command(words)), redact(" ".join(words))):
        assert not any(secret in shown for secret in secrets)
        assert option in shown and "--port 8000" in shown


@given(option=OPTIONS, secret=SECRET)
def test_values_after_an_equals_sign_are_hidden(option: str, secret: str) -> None:
    shown = redact_command(["vllm", f"{option}={secret}", "--port=8000"])
    assert shown == ("vllm", f"{option}={REDACTED}", "--port=8000")


@given(variable=VARIABLES, secret=SECRET)
def test_values_of_secret_variables_are_hidden(variable: str, secret: str) -> None:
    for text in (f"{variable}={secret}", f'{{"{variable}": "{secret}"}}', f"{variable}: {secret}"):
        assert secret not in redact(f"before {text} after")


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdef0123456789",
        "curl -H 'Authorization: Bearer abcdef0123456789'",
        "http://someone:abcdef0123456789@proxy:8080/",
        "hf_abcdef0123456789",
        "sk-abcdef0123456789",
        "ghp_abcdef0123456789",
    ],
)
def test_secrets_known_by_their_form_are_hidden(text: str) -> None:
    assert "abcdef0123456789" not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "vllm serve m --max-num-batched-tokens 8192 --tokenizer-mode auto --ssl-keyfile /etc/k",
        "process 12 (Worker) fd 4: 127.0.0.1:8000 -> 127.0.0.1:40000 (ESTABLISHED)",
        "VLLM_CPU_KVCACHE_SPACE=1",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text
    assert " ".join(redact_command(text.split())) == text
