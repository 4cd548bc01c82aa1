"""Whose prefixes a request may find: the engine's tenant. Called by `app` and `websocket`."""


def tenant_of(key: str, cache_salt: str | None) -> str:
    """Requests share prefixes with those of the same key, "" where there are none, and salt. Without either the tenant
    is that whose prefixes a prompt cache keeps."""
    return f"{key}\0{cache_salt or ''}" if key or cache_salt else ""
