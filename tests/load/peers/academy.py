"""Our side of the comparisons: the service with two workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.load import service
from tests.load.peers.client import Plan
from tests.load.peers.compare import CALLERS, Read, Service, Write

ME, LOG_IN, REFRESH, SIGN_UP, LIST = (
    "who am I",
    "log-in",
    "refresh",
    "sign-up",
    "list of 100",
)
USERS = 100  # who exist before the comparisons; the first CALLERS of them log in
PASSWORD = service.ANA["password"]
HASH = "argon2id m=19456 KiB t=2 p=1"


@contextmanager
def running() -> Iterator[tuple[service.Service, Service]]:
    """Run `academy up` with WORKERS=2; yield it, and the calls to compare."""
    with service.running(pinned=False, workers=2) as ours:
        processes = service.serving_processes(ours.process)
        yield ours, Service("ours", HASH, processes, _works(ours))


def _works(ours: service.Service) -> dict[str, Read | Write]:
    url = f"http://{ours.rest}/api/v1"
    sign_up = sign_up_users(
        Plan(
            ours.rest,
            "/api/v1/users",
            f'{{"email":"user$number@example.com","username":"user$number",'
            f'"password":"{PASSWORD}"}}',
            '"username":"user',
            [""] * CALLERS,
            status=201,
        )
    )
    log_in = Plan(
        ours.rest,
        "/api/v1/auth/login",
        f'{{"identifier":"user$caller","password":"{PASSWORD}"}}',
        '"refreshToken":"([^"]+)"',
        [""] * CALLERS,
    )
    refresh = replace(
        log_in, path="/api/v1/auth/refresh", body='{"refreshToken":"$token"}'
    )
    return {
        ME: Read(f"{url}/users/me", ours.bearer),
        LOG_IN: Write(log_in),
        REFRESH: Write(signed_in(refresh, log_in)),
        SIGN_UP: sign_up,
        LIST: Read(f"{url}/users?page_size=100", ours.bearer, b"", "username", 100),
    }


def sign_up_users(plan: Plan) -> Write:
    """Create USERS by the plan; return the work that continues it."""
    work = Write(plan)
    work.make(USERS)
    return work


def signed_in(plan: Plan, log_in: Plan) -> Plan:
    """Return the plan with a token of each caller, as `log_in` answers it."""
    work = Write(log_in)
    work.make(len(log_in.tokens))
    return replace(plan, tokens=work.plan.tokens)


def token(log_in: Plan, answer: str) -> str:
    """Log in once; return what the pattern finds in the answer."""
    (found,) = signed_in(log_in, replace(log_in, answer=answer, tokens=[""])).tokens
    return found
