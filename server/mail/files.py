"""Mail without a mail server: one file per e-mail, and a line on the console."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from server.domain.outbox.emails import Email
from server.mail.message import MessageBuilder, message_name


class FileMailer:
    """Writes each message into a folder; only its owner can read the files."""

    def __init__(self, folder: Path, message_builder: MessageBuilder) -> None:
        self._folder = folder
        self._message_builder = message_builder

    async def send(self, email: Email) -> None:
        """Write the file of an e-mail; a repeated delivery writes the same file."""
        content = self._message_builder.message(email).as_bytes()
        path = self._folder / f"{message_name(email)}.{email.template}.eml"
        await asyncio.to_thread(self._write, path, content)

    async def close(self) -> None:
        """Do nothing: no resource is open."""

    def _write(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        draft.replace(path)
        # the recipient and the content stay in the file
        sys.stdout.write(f"mail: {path}\n")
        sys.stdout.flush()
