"""A web service: one session for the process, one thread per request."""

import json
import threading
import urllib.request
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import numpy as np
from ais_bench.infer.interface import InferSession

net = InferSession(0, "add_bs1.om")


def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    try:
        values = json.loads(body)["values"]
        x = np.array(values, dtype=np.float32).reshape(1, 3, 32, 32)
        outputs = net.infer([x, x])
    except (ValueError, KeyError, RuntimeError) as e:
        start_response("400 Bad Request", [("Content-Type", "application/json")])
        return [json.dumps({"error": str(e)}).encode()]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"sum": float(outputs[0].sum())}).encode()]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False
    request_queue_size = 32


class Quiet(WSGIRequestHandler):
    def log_message(self, *args):
        pass


def ask(url, payload):
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.loads(e.read())


if __name__ == "__main__":
    with make_server("127.0.0.1", 0, app, server_class=Server, handler_class=Quiet) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        result = [None] * 8

        def client(k):
            result[k] = ask(url, {"values": [k] * 3 * 32 * 32})

        clients = [threading.Thread(target=client, args=(k,)) for k in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        result.append(ask(url, {"values": [1, 2, 3]}))
        server.shutdown()
        serving.join()
    net.free_resource()
