"""`academy up` without a cache of accounts: `python -m tests.load.uncached_up LEVEL`.

LEVEL is the store that each read of an account goes to: redis or postgres.
"""

import sys

from server.cli.main import main
from server.domain.accounts.users import User
from server.store.accounts import user_cache


async def _read_from_postgres(cache: user_cache.UserCache, user_id: int) -> User | None:
    return await cache._read(user_id)


if __name__ == "__main__":
    if sys.argv[1] == "redis":
        user_cache.LOCAL_TTL_SECONDS = -1.0  # every entry has expired
    else:
        user_cache.UserCache.by_id = _read_from_postgres  # type: ignore[method-assign, assignment]
    sys.argv[1:] = ["up"]
    main()
