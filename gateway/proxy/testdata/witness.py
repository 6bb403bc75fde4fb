"""An app that tells, a JSON line each, what it was asked. Its first line is its port.

Python's http.server, with the chunks it lacks. Headers are folded as CGI and
WSGI fold them (PEP 3333): what two spellings would become is one name here.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

out = threading.Lock()


def tell(**what):
    with out:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def send_error(self, code, message=None, explain=None):
        tell(Method="", URI=f"unreadable: {self.raw_requestline!r} {message}", Host="")
        super().send_error(code, message, explain)

    def chunks(self):
        body = b""
        while (n := int(self.rfile.readline().strip() or b"-1", 16)) > 0:
            body += self.rfile.read(n)
            self.rfile.readline()
        trailers = {}
        while (line := self.rfile.readline().strip()):
            name, _, value = line.decode("latin-1").partition(":")
            trailers.setdefault(name.upper().replace("-", "_"), []).append(value.strip())
        return body, trailers

    def serve(self):
        env = {}
        for name, value in self.headers.items():
            env.setdefault(name.upper().replace("-", "_"), []).append(value)
        body, trailers = b"", {}
        try:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                body, trailers = self.chunks()
            elif n := int(self.headers.get("Content-Length", 0)):
                body = self.rfile.read(n)
        except (ValueError, OSError):
            self.close_connection = True
        tell(Method=self.command, URI=self.path, Host=self.headers.get("Host", ""), Header=env, Trailer=trailers, Body=body.decode("latin-1"))
        answer = b"ok\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = serve


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
server.handle_error = lambda *_: None  # who broke off is no news
print(server.server_port, flush=True)
server.serve_forever()
