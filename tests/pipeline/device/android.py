"""A stand-in for an Android device's adb daemon, over TCP, for the real adb server and client; with faults.

It speaks the transport protocol (24-byte messages CNXN, AUTH, OPEN, OKAY, WRTE, CLSE) and one service, the shell's second
protocol, whose commands it runs in this machine's ``/bin/sh``.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field

_LARGEST = 64 * 1024
_BANNER = b"device::ro.product.name=standin;ro.product.model=Stand In;ro.product.device=standin;features=shell_v2,cmd"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE = range(5)


class Cut(Exception):
    """The line broke."""


@dataclass
class Faults:
    """What is wrong with the device; may be changed while it runs."""

    cut_after: list[int] = field(default_factory=list)
    """The line breaks after so many bytes from the computer; then after as many as the next entry says."""
    shorten: bool = False
    """It stores one byte less of what it is given."""
    lie: bool = False
    """Its own exit status is always 0."""
    fail: bool = False
    """Every command ends with status 1 and says 0."""
    unauthorized: bool = False


class Device:
    """Listens until it is closed."""

    def __init__(self) -> None:
        self.faults, self.cuts = Faults(), 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._server.accept()
                threading.Thread(target=_Connection(self, line).serve, daemon=True).start()


class _Connection:
    def __init__(self, device: Device, line: socket.socket) -> None:
        self.device, self.line, self.lock = device, line, threading.Lock()
        self.streams: dict[int, _Stream] = {}
        self.received = 0
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        number = int.from_bytes(command, "little")
        head = struct.pack("<6I", number, first, second, len(data), sum(data) & 0xFFFFFFFF, number ^ 0xFFFFFFFF)
        with self.lock:
            self.line.sendall(head + data)

    def _exactly(self, count: int) -> bytes:
        held = b""
        while len(held) < count:
            part = self.line.recv(count - len(held))
            if not part:
                raise Cut
            held += part
        return held

    def serve(self) -> None:
        try:
            while True:
                number, first, second, size, _, _ = struct.unpack("<6I", self._exactly(24))
                data = self._exactly(size)
                self._count(size)
                self._take(number.to_bytes(4, "little"), first, second, data)
        except (Cut, OSError):
            pass
        finally:
            with contextlib.suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
            self.line.close()
            for stream in list(self.streams.values()):
                stream.given.put(None)
                stream.acknowledged.release()

    def _count(self, size: int) -> None:
        faults = self.device.faults
        self.received += size
        if faults.cut_after and self.received > faults.cut_after[0]:
            faults.cut_after.pop(0)
            self.device.cuts += 1
            raise Cut

    def _take(self, command: bytes, first: int, second: int, data: bytes) -> None:
        if command in (b"CNXN", b"AUTH"):
            if self.device.faults.unauthorized:
                # Signed or not, nobody has accepted the question on the screen.
                if command == b"CNXN" or first == 2:
                    self.send(b"AUTH", 1, 0, bytes(20))
            else:
                self.send(b"CNXN", 0x01000001, _LARGEST, _BANNER)
        elif command == b"OPEN":
            stream = _Stream(self, len(self.streams) + 1, first)
            self.streams[stream.local] = stream
            self.send(b"OKAY", stream.local, first)
            threading.Thread(target=stream.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif command == b"WRTE" and second in self.streams:
            self.streams[second].given.put(data)
            self.send(b"OKAY", second, first)
        elif command == b"OKAY" and second in self.streams:
            self.streams[second].acknowledged.release()
        elif command == b"CLSE" and second in self.streams:
            self.streams[second].given.put(None)


class _Stream:
    def __init__(self, connection: _Connection, local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.given: queue.Queue[bytes | None] = queue.Queue()
        self.acknowledged, self.turn = threading.Semaphore(0), threading.Lock()

    def serve(self, service: str) -> None:
        with contextlib.suppress(Cut, OSError):
            if service.startswith("shell,v2"):
                self._shell(service.partition(":")[2])
            self.connection.send(b"CLSE", self.local, self.remote)

    def _shell(self, line: str) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        threading.Thread(target=self._feed, args=(process,), daemon=True).start()
        readers = [threading.Thread(target=self._pump, args=(process, kind)) for kind in (_STDOUT, _STDERR)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        status = process.wait()
        faults = self.connection.device.faults
        self._write(_EXIT, bytes([0 if faults.lie else status & 255]))

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Standard input, from packets of a kind, a length and the bytes."""
        assert process.stdin is not None
        held, last = b"", b""
        with contextlib.suppress(OSError, ValueError):
            while (part := self.given.get()) is not None:
                held += part
                while len(held) >= 5 and len(held) >= 5 + (size := struct.unpack("<I", held[1:5])[0]):
                    kind, data, held = held[0], held[5 : 5 + size], held[5 + size :]
                    if kind == _STDIN:
                        process.stdin.write(last)
                        last = data
                        if not self.connection.device.faults.shorten:
                            process.stdin.write(last)
                            last = b""
                        process.stdin.flush()
                    elif kind == _CLOSE:
                        process.stdin.write(last[:-1])
                        process.stdin.close()
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()

    def _pump(self, process: subprocess.Popen[bytes], kind: int) -> None:
        pipe = process.stdout if kind == _STDOUT else process.stderr
        assert pipe is not None
        with contextlib.suppress(Cut, OSError):
            while data := pipe.read1(_LARGEST // 2):  # type: ignore[attr-defined]
                self._write(kind, data)

    def _write(self, kind: int, data: bytes) -> None:
        with self.turn:
            self.connection.send(b"WRTE", self.local, self.remote, struct.pack("<BI", kind, len(data)) + data)
            if not self.acknowledged.acquire(timeout=20):
                raise Cut
