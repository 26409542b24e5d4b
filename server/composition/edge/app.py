"""The REST edge: its settings, read from the contract's annotations, and its app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

from fastapi import FastAPI

from edge.app import create_app
from edge.config import EdgeSettings, TokenCookie
from edge.http.trusted_proxies import TrustedProxies
from edge.observation import Observe
from edge.port import CallPort
from server.composition.edge.tracing import trace_edge
from server.composition.edge.upstream_port import UpstreamPort
from server.config import Settings
from server.domain.errors import RefreshTokenInvalid, StepUpRequired
from server.domain.limits import Window
from server.observability.tracing.tracing import Tracing
from server.rpc import contract, documentation
from server.rpc.interceptors.errors import DOMAIN
from server.rpc.interceptors.validation import NO_NUL

# Fields with a meaning in HTTP (AIP-154, AIP-155), as the contract names them.
ETAG_FIELD = "etag"
REQUEST_ID_FIELD = "request_id"
RESUME_TOKEN_FIELD = "resume_token"  # noqa: S105  # a name, no secret

Rates = Mapping[str, Sequence[contract.RateRule]]


def edge_app(port: CallPort, settings: EdgeSettings) -> FastAPI:
    """Build the REST edge of the whole contract."""
    return create_app(contract.descriptors(), port, settings)


def remote_edge(
    upstream: UpstreamPort,
    settings: Settings,
    observe: Observe | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the REST edge in front of a gRPC server elsewhere."""
    edge = edge_settings(settings, rates(settings))
    edge = replace(edge, ready=upstream.is_ready, observe_request=observe)
    edge = trace_edge(edge, tracing, TrustedProxies(settings.trusted_proxies))
    return edge_app(upstream, edge)


def edge_settings(settings: Settings, in_force: Rates) -> EdgeSettings:
    """Return the edge's settings: the operator's, and the contract's annotations."""
    return EdgeSettings(
        title=documentation.TITLE,
        version=version("blatam-academy"),
        description=documentation.DESCRIPTION,
        info=documentation.INFO,
        service_order=documentation.service_names(),
        error_reasons=documentation.ERROR_REASONS,
        access=documentation.access_sentences(),
        step_up=documentation.step_up_sentences(),
        step_up_reason=StepUpRequired.reason,
        public_url=settings.public_url,
        tls=settings.tls_cert is not None,
        docs=settings.debug,
        debug=settings.debug,
        cors_origins=settings.cors_origins,
        trusted_proxies=tuple(map(str, settings.trusted_proxies)),
        serve_trailing_slash=True,
        etag_field=ETAG_FIELD,
        request_id_field=REQUEST_ID_FIELD,
        resume_token_field=RESUME_TOKEN_FIELD,
        text_pattern=NO_NUL,
        error_domain=DOMAIN,
        public_methods=contract.public_methods(),
        public_max_age=contract.public_max_age(),
        rate_limits=contract.rate_sentences(in_force),
        cookies=tuple(
            TokenCookie(
                name=name,
                reply_fields=table.reply_fields,
                request_fields=table.request_fields,
                max_age_fields=table.max_age_fields,
                cleared_by=frozenset(table.cleared_by),
                invalid_reasons=frozenset((RefreshTokenInvalid.reason,)),
            )
            for name, table in contract.cookies().items()
        ),
    )


def rates(settings: Settings) -> Rates:
    """Return the rates of RATE_LIMITS. Raises ContractError for an unknown RPC."""
    contract.check_overrides(settings.rate_limits)
    overrides = {
        name: [
            contract.RateRule(tuple(rule.by), Window(rule.limit, rule.per))
            for rule in rules
        ]
        for name, rules in settings.rate_limits.items()
    }
    contract.rate_sentences(overrides)  # raises if a rule cannot be enforced
    return overrides
