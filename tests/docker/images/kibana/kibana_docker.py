#!/usr/bin/env python3
"""Stand-in for Kibana: it answers its health checks once Elasticsearch answers.

The body of /api/status is not Kibana's, by which our scripts see that this is none. With
SERVER_SSL_ENABLED it speaks TLS, and sends a visitor to a login.
"""

import json
import os
import signal
import ssl
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TIMEOUT_S = 5


def elasticsearch_answers() -> bool:
    """Return whether the first Elasticsearch of ELASTICSEARCH_HOSTS answers, be it with 401."""
    hosts = os.environ["ELASTICSEARCH_HOSTS"]
    url = json.loads(hosts)[0] if hosts.startswith("[") else hosts
    authority = os.environ.get("ELASTICSEARCH_SSL_CERTIFICATEAUTHORITIES")
    context = ssl.create_default_context(cafile=authority) if authority else None
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    def do_HEAD(self) -> None:
        """Send the visitor to the login."""
        self.send_response(302 if elasticsearch_answers() else 503)
        self.end_headers()

    def do_GET(self) -> None:
        """Answer that we are available when Elasticsearch is, as Kibana does."""
        if self.path != "/api/status":
            self.send_error(404)
        elif not elasticsearch_answers():
            self.send_error(503, "Kibana server is not ready yet")
        else:
            content = b"stand-in for Kibana"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


def main() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = ThreadingHTTPServer(("", 5601), Handler)
    if os.environ.get("SERVER_SSL_ENABLED") == "true":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.environ["SERVER_SSL_CERTIFICATE"], os.environ["SERVER_SSL_KEY"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
