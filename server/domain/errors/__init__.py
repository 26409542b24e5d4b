"""Every error of the service, as a tree, independent of transports.

    AcademyError                 kind, reason, message, metadata
    ├── InvalidFields            the fields and the rules that they break
    ├── MalformedRequest
    ├── TokenMissing, TokenInvalid, InvalidCredentials, RefreshTokenInvalid
    ├── MailedTokenInvalid
    ├── AccessDenied, UserRequired
    ├── UserNotFound, SessionNotFound, ServiceKeyNotFound
    ├── StepUpRequired, FactorNotFound, FactorCodeInvalid, FactorRequired
    ├── TooManyFactors, LastWayIn, PasskeysNotConfigured, PasskeyInvalid
    ├── IdentityProviderNotFound, IdentityProviderUnavailable
    ├── FederatedLoginInvalid, IdentityNotLinked, IdentityTaken, IdentityNotFound
    ├── ImpersonationForbidden
    ├── ProfileNotFound, ProfileExists, SelfFollow
    ├── PostNotFound, CategoryNotFound, SlugTaken, CategoryInUse
    ├── EtagMismatch, LastAdmin, NextKeyTooNew, ResumeTokenExpired
    ├── EmailTaken, UsernameTaken, RequestIdReused
    ├── RateLimited, Overloaded  when to retry
    ├── StoreUnavailable         a private cause, in the log only
    ├── ServerStopping
    └── DeadlineExceeded

The root and the kinds are in `base`, the others by feature. A `reason` is a value of
blatam.error.v1.Reason without its prefix (a test compares the two).
"""

from server.domain.errors.accounts import (
    EmailTaken,
    LastAdmin,
    UsernameTaken,
    UserNotFound,
)
from server.domain.errors.availability import (
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    ResumeTokenExpired,
    ServerStopping,
    StoreUnavailable,
)
from server.domain.errors.base import (
    MAX_MESSAGE_SIZE,
    MAX_TEXT_SIZE,
    MAX_VIOLATIONS,
    MAX_VIOLATIONS_SIZE,
    AcademyError,
    ErrorKind,
    EtagMismatch,
    InvalidFields,
    MalformedRequest,
    RequestIdReused,
    Violation,
)
from server.domain.errors.credentials import (
    AccessDenied,
    InvalidCredentials,
    KeyUnknown,
    MailedTokenInvalid,
    NextKeyTooNew,
    RefreshTokenInvalid,
    ServiceKeyNotFound,
    SessionNotFound,
    TokenInvalid,
    TokenMissing,
    UserRequired,
)
from server.domain.errors.factors import (
    FactorCodeInvalid,
    FactorNotFound,
    FactorRequired,
    ImpersonationForbidden,
    LastWayIn,
    PasskeyInvalid,
    PasskeysNotConfigured,
    StepUpRequired,
    TooManyFactors,
)
from server.domain.errors.identities import (
    FederatedLoginInvalid,
    IdentityNotFound,
    IdentityNotLinked,
    IdentityProviderNotFound,
    IdentityProviderUnavailable,
    IdentityTaken,
)
from server.domain.errors.members import ProfileExists, ProfileNotFound, SelfFollow
from server.domain.errors.posts import (
    CategoryInUse,
    CategoryNotFound,
    PostNotFound,
    SlugTaken,
)

__all__ = [
    "MAX_MESSAGE_SIZE",
    "MAX_TEXT_SIZE",
    "MAX_VIOLATIONS",
    "MAX_VIOLATIONS_SIZE",
    "AcademyError",
    "AccessDenied",
    "CategoryInUse",
    "CategoryNotFound",
    "DeadlineExceeded",
    "EmailTaken",
    "ErrorKind",
    "EtagMismatch",
    "FactorCodeInvalid",
    "FactorNotFound",
    "FactorRequired",
    "FederatedLoginInvalid",
    "IdentityNotFound",
    "IdentityNotLinked",
    "IdentityProviderNotFound",
    "IdentityProviderUnavailable",
    "IdentityTaken",
    "ImpersonationForbidden",
    "InvalidCredentials",
    "InvalidFields",
    "KeyUnknown",
    "LastAdmin",
    "LastWayIn",
    "MailedTokenInvalid",
    "MalformedRequest",
    "NextKeyTooNew",
    "Overloaded",
    "PasskeyInvalid",
    "PasskeysNotConfigured",
    "PostNotFound",
    "ProfileExists",
    "ProfileNotFound",
    "RateLimited",
    "RefreshTokenInvalid",
    "RequestIdReused",
    "ResumeTokenExpired",
    "SelfFollow",
    "ServerStopping",
    "ServiceKeyNotFound",
    "SessionNotFound",
    "SlugTaken",
    "StepUpRequired",
    "StoreUnavailable",
    "TokenInvalid",
    "TokenMissing",
    "TooManyFactors",
    "UserNotFound",
    "UserRequired",
    "UsernameTaken",
    "Violation",
]
