"""What access tokens say."""

import jwt


def claims(access_token: str) -> dict[str, object]:
    """Return the claims of a token, not verified."""
    decoded: dict[str, object] = jwt.decode(
        access_token, options={"verify_signature": False}
    )
    return decoded
