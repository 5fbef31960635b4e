"""The public host of the lab: an HTTP server (files below a folder, /whoami tells who asks) and a name server, both families.

    internet.py FOLDER ADDRESS '{"files.example.com": ["45.33.32.10"], ...}'

The name server answers A and AAAA from the table, on UDP and TCP port 53 of ADDRESS; unknown names do not exist.
Prints "ready" once both listen.
"""
import http.server
import ipaddress
import json
import os
import socket
import socketserver
import struct
import sys
import threading


class Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path != "/whoami":
            return super().do_GET()
        body = ("you are %s\n" % self.client_address[0]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def answer(question, table):
    name, at = [], 12
    while question[at]:
        name.append(question[at + 1:at + 1 + question[at]].decode("ascii", "replace").lower())
        at += 1 + question[at]
    kind = struct.unpack(">H", question[at + 1:at + 3])[0]
    known = table.get(".".join(name))
    records = [ipaddress.ip_address(a).packed for a in known or []]
    records = [r for r in records if len(r) == {1: 4, 28: 16}.get(kind)]
    body = b"".join(struct.pack(">HHHIH", 0xc00c, kind, 1, 5, len(r)) + r for r in records)
    return question[:2] + struct.pack(">HHHHH", 0x8180 if known is not None else 0x8183, 1, len(records), 0, 0) + question[12:at + 5] + body


def main():
    folder, address, table = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

    class Udp(socketserver.BaseRequestHandler):
        def handle(self):
            self.request[1].sendto(answer(self.request[0], table), self.client_address)

    class Tcp(socketserver.BaseRequestHandler):
        def handle(self):
            size = struct.unpack(">H", self.request.recv(2, socket.MSG_WAITALL))[0]
            said = answer(self.request.recv(size, socket.MSG_WAITALL), table)
            self.request.sendall(struct.pack(">H", len(said)) + said)
    os.chdir(folder)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    servers = [Server(("::", 80), Files), Server(("::", 8080), Files), socketserver.ThreadingUDPServer((address, 53), Udp), socketserver.ThreadingTCPServer((address, 53), Tcp)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
