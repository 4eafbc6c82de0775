"""A gRPC server. Messages are plain bytes; the method's name says what is done with them."""

import collections
import concurrent.futures
import threading
import time

import grpc

seen = collections.Counter()
lock = threading.Lock()


def count(what):
    with lock:
        seen[what] += 1


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", metadata.get("x-ask", "")),))
    context.set_trailing_metadata(
        (("x-trailing", "end"), ("x-trailing-bin", metadata.get("x-ask-bin", b"")))
    )
    return request


def server_streaming(request, context):
    amount, size = map(int, request.split())
    for number in range(amount):
        yield number.to_bytes(4, "big") + bytes(size)


def client_streaming(requests, context):
    total = sum(len(request) for request in requests)
    return str(total).encode()


def bidirectional(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    """Answers with the status asked for, before any message."""
    count(f"fail {request.decode()}")
    code = [c for c in grpc.StatusCode if c.value[0] == int(request)][0]
    context.set_trailing_metadata((("x-why", "asked"),))
    context.abort(code, "as asked: 100 % of it, über alles")


def fail_late(request, context):
    """Answers with a status after a message."""
    yield b"first"
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def wait(request, context):
    """Takes longer than anybody waits; notes when the client has gone."""
    gone = threading.Event()
    context.add_callback(gone.set)
    count("wait began")
    if gone.wait(20):
        count("wait cancelled")
    return b"too late"


def endless(request, context):
    context.add_callback(lambda: count("endless cancelled"))
    while context.is_active():
        yield b"more"
        time.sleep(0.01)


def remaining(request, context):
    return str(context.time_remaining()).encode()


def ask(request, context):
    with lock:
        return str(seen[request.decode()]).encode()


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStreaming": grpc.unary_stream_rpc_method_handler(server_streaming),
    "ClientStreaming": grpc.stream_unary_rpc_method_handler(client_streaming),
    "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Ask": grpc.unary_unary_rpc_method_handler(ask),
}

server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(max_workers=64),
    options=[("grpc.max_receive_message_length", 16 << 20), ("grpc.so_reuseport", 0)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
print("port", server.add_insecure_port("127.0.0.1:0"))
server.start()
server.wait_for_termination()
