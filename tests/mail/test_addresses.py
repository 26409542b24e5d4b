"""The contract's rule for e-mail addresses and the mailer's agree."""

import re
from email import message_from_bytes, policy

from hypothesis import given, settings
from hypothesis import strategies as st

from blatam.auth.v1 import auth_pb2
from buf.validate import validate_pb2
from server.domain.outbox.emails import Email, Template
from server.mail.message import MessageBuilder
from tests.fakes import NOON, Clock

BUILDER = MessageBuilder("no-reply@academy.example", "https://academy.example", Clock())
FIELD = auth_pb2.ChangeEmailRequest.DESCRIPTOR.fields_by_name["new_email"]
RULES = FIELD.GetOptions().Extensions[validate_pb2.field]
MAX_LENGTH = RULES.string.max_len


def pattern(rule_id: str) -> str:
    """Return the regular expression of a CEL rule that only matches one."""
    (rule,) = (rule for rule in RULES.cel if rule.id == rule_id)
    text = rule.expression.removeprefix("this.matches('").removesuffix("')")
    return text.replace("\\\\", "\\").removeprefix("^").removesuffix("$")


LOCAL_PART = pattern("email.local_part")
ADDRESSES = st.from_regex(
    pattern("email.form"), fullmatch=True, alphabet=st.characters(max_codepoint=127)
).filter(lambda text: len(text) <= MAX_LENGTH and re.match(LOCAL_PART, text))


@settings(deadline=None)
@given(ADDRESSES)
def test_addresses_of_the_contract_can_be_mailed(address: str) -> None:
    """A message is written for each, and its To header is that address."""
    message = BUILDER.message(Email(7, NOON, Template.WELCOME, address, "ana"))
    read = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert read["To"].addresses[0].addr_spec == address
