"""Requests by the byte, for tests of what no client sends, or of how a client goes."""

import socket

from tests.server.conftest import RunningServer


def post_head(length: int) -> bytes:
    """Head of a completions request."""
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def raw(server: RunningServer, *pieces: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    for piece in pieces:
        connection.sendall(piece)
    return connection


def read_all(connection: socket.socket) -> bytes:
    with connection:
        content = b""
        while piece := connection.recv(65536):
            content += piece
        return content
