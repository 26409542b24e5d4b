"""Mail without a mail server: a file each, and a line on the console."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from server.domain.outbox.emails import Email
from server.mail.message import MessageBuilder, name


class FileMailer:
    """Writes each message into a folder that only its owner reads."""

    def __init__(self, folder: Path, message_builder: MessageBuilder) -> None:
        self._folder = folder
        self._message_builder = message_builder

    async def send(self, email: Email) -> None:
        """Write a letter's file; a repeat writes the same one again."""
        content = self._message_builder.message(email).as_bytes()
        path = self._folder / f"{name(email)}.{email.template}.eml"
        await asyncio.to_thread(self._write, path, content)

    async def close(self) -> None:
        """Nothing is open."""

    def _write(self, path: Path, content: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        mine = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(mine, "wb") as file:
            file.write(content)
        draft.replace(path)
        # whom it is for and what it holds stays in the file
        sys.stdout.write(f"mail: {path}\n")
        sys.stdout.flush()
