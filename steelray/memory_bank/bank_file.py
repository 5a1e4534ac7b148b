"""One file of a bank: its digest, which is checked before it is used, and Arrow tables as bytes."""

import hashlib
import io
from dataclasses import dataclass

import pyarrow as pa

from steelray.config import ConfigError
from steelray.description import Read


@dataclass(frozen=True)
class BankFile:
    """One file of the bank, with the digest that is checked before it is used."""

    name: str
    num_rows: int
    sha256: str

    @classmethod
    def of(cls, name: str, num_rows: int, body: bytes) -> "BankFile":
        """The entry of a file with these bytes."""
        return cls(name, num_rows, hashlib.sha256(body).hexdigest())

    def verified(self, read: Read) -> bytes:
        """The file's bytes.

        Raises:
            ConfigError: it is missing, or its digest is not the one in bank.json.
        """
        try:
            body = read(self.name)
        except LookupError:
            raise ConfigError(f"bank file {self.name} is missing: the bank is incomplete, rebuild it") from None
        if hashlib.sha256(body).hexdigest() != self.sha256:
            raise ConfigError(
                f"bank file {self.name}: digest differs from bank.json's; it is damaged, rebuild the bank"
            )
        return body


def to_ipc(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_ipc(body: bytes) -> pa.Table:
    """The table of an Arrow IPC file."""
    return pa.ipc.open_file(pa.BufferReader(body)).read_all()
