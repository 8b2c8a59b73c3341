"""Variables that look like misspelt settings."""

from __future__ import annotations

from payloadd.config.misspelt import misspelt_names


def test_a_misspelt_setting_is_found_and_foreign_variables_are_not() -> None:
    """An operator would believe that a setting is in force."""
    environ = {
        "COMPRESION": "zstd", "BATCH_MAX_PAYLOAD": "9", "STORE_URI": "s3://b", "bind": "x",
        "MAX_WORKERS": "1", "STATE_DIRECTORY": "/x", "STREAMS": "a", "PATH": "/bin", "HOME": "/",
        "AWS_ENDPOINT_URL_SQS": "x", "AWS_REGION_NAME": "x", "LOGS_DIRECTORY": "/x",
        "CACHE_DIRECTORY": "/x", "SSL_CERT_FILE": "x", "LOGNAME": "x", "JOURNAL_STREAM": "8:1",
        "HTTP_TIMEOUT": "1", "MAX_RETRIES": "1", "TERM": "x", "SHELL": "x", "NO_COLOR": "1",
    }  # fmt: skip
    assert misspelt_names(environ) == {
        "COMPRESION": "COMPRESSION",
        "BATCH_MAX_PAYLOAD": "BATCH_MAX_PAYLOADS",
        "STORE_URI": "STORE_URL",
        "bind": "BIND",
    }
