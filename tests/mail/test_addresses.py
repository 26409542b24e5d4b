"""The contract's rule for e-mail addresses and the mailer's agree."""

from email import message_from_bytes, policy

from hypothesis import given, settings
from hypothesis import strategies as st
from protovalidate import Validator

from blatam.auth.v1 import auth_pb2
from buf.validate import validate_pb2
from server.domain.outbox.emails import Email, EmailTemplate
from server.mail.message import MessageBuilder
from tests.fakes import NOON, Clock

BUILDER = MessageBuilder("no-reply@academy.example", "https://academy.example", Clock())
FIELD = auth_pb2.ChangeEmailRequest.DESCRIPTOR.fields_by_name["new_email"]
VALIDATOR = Validator()


def form() -> str:
    """Return the regular expression of the rule `email.form`."""
    rules = FIELD.GetOptions().Extensions[validate_pb2.field].cel
    (rule,) = (rule for rule in rules if rule.id == "email.form")
    text = rule.expression.removeprefix("this.matches('").removesuffix("')")
    return text.replace("\\\\", "\\")


def is_accepted(address: str) -> bool:
    request = auth_pb2.ChangeEmailRequest(new_email=address, current_password="x")
    return not VALIDATOR.collect_violations(request)


ADDRESSES = st.from_regex(
    form(), fullmatch=True, alphabet=st.characters(max_codepoint=127)
).filter(is_accepted)


@settings(deadline=None)
@given(ADDRESSES)
def test_addresses_of_the_contract_can_be_mailed(address: str) -> None:
    """A message is written for each, and its To header is that address."""
    message = BUILDER.message(Email(7, NOON, EmailTemplate.WELCOME, address, "ana"))
    read = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert read["To"].addresses[0].addr_spec == address
