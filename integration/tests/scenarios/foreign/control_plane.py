"""A control plane that shares no code with ours, and misbehaves when asked to.

What it says of a target is in the target's name: `SUBJECT--HOW--MORE`. Of its own ports a proxy is
told by their numbers, see `PORTS`. Arguments: a JSON file with the addresses of the endpoints
`good`, `bad` and `meshed`, read whenever they are asked for, and in a mesh with identities a folder
for the roots; or `list`, to print what there is.
"""

import collections
import concurrent.futures
import json
import sys
import threading

import grpc

import destination_pb2 as destination
import inbound_pb2 as inbound
import outbound_pb2 as outbound
import policies
import violations

FIRST_PORT = 9000
NOBODY, SILENT = 8001, 8002
# Whom to expect at the endpoint `meshed`.
MESHED = "web.test.serviceaccount.identity.mesh-system.cluster.local"
PORTS = {
    FIRST_PORT + number: f"broken--{name}"
    for number, name in enumerate(violations.SERVER_REJECTED)
}
PORTS |= {NOBODY: "nobody", SILENT: "silent"}

asked = collections.Counter()
lock = threading.Lock()


def first_time(key):
    with lock:
        asked[key] += 1
        return asked[key] == 1


def hold(context):
    """Keeps a stream open, without a word, for as long as its reader wants it."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait()


def abort(context, number):
    [code] = [code for code in grpc.StatusCode if code.value[0] == int(number)]
    context.abort(code, "as asked")


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def behave(how, key, good, bad, table, context):
    """The messages of a stream. Its reader is to go on with `good`, whatever comes after it;
    `bad` is as good, but leads elsewhere, and is never sent as it is."""
    how, _, more = how.partition("--")
    if how.endswith("-first") and first_time(key):
        if how == "status-first":
            abort(context, more)
        if how == "silent-first":
            hold(context)
        return
    if how == "silent":
        return hold(context)
    if how == "only-broken":
        table[more](bad)
        yield bad
        return hold(context)
    yield good
    if how == "ends":
        return
    if how == "then-status" and first_time(key):
        abort(context, more)
    if how == "broken":
        table[more](bad)
        yield bad
    if how == "garbage":
        # A field that claims to be longer than the message is.
        yield b"\x0a\xff\xff\xff\xff\x07"
    if how == "huge":
        yield b"\xfa\x06" + varint(20 << 20) + bytes(20 << 20)
    hold(context)


def watch_outbound(request, context):
    name = request.authority.rsplit(":", 1)[0]
    subject, _, how = name.partition("--")
    if subject == "policy":
        good, bad = policies.detect_policy("good:80"), policies.detect_policy("bad:80")
        yield from behave(how, name, good, bad, changes(violations.OUTBOUND), context)
    elif subject in ("endpoints", "meshed"):
        yield policies.detect_policy(request.authority)
        hold(context)
    else:
        context.abort(grpc.StatusCode.NOT_FOUND, name)


def get_destination(request, context):
    name = request.path.rsplit(":", 1)[0]
    subject, _, how = name.partition("--")
    good = policies.add(endpoint(subject if subject in ("bad", "meshed") else "good"))
    if how == "remove-first":
        yield policies.remove("10.9.8.7:80")
    if how == "gone-first":
        yield policies.no_endpoints(False)
    if how == "many":
        for _ in range(1000):
            yield good
    bad = policies.add(endpoint("bad"))
    yield from behave(how, ("get", name), good, bad, changes(violations.ENDPOINTS), context)


def get_profile(request, context):
    yield from ()
    hold(context)


def watch_port(request, context):
    how = PORTS.get(request.port, "good")
    if how == "nobody":
        yield policies.server()
        return hold(context)
    good, bad = (policies.server(policies.authorization()) for _ in range(2))
    yield from behave(how, request.port, good, bad, violations.SERVER_REJECTED, context)


def endpoint(which):
    with open(sys.argv[1]) as file:
        addresses = json.load(file)
    made = policies.endpoint(addresses[which], h2=which == "meshed")
    if which == "meshed" and len(sys.argv) > 2:
        made.tls_identity.dns_like_identity.name = MESHED
        made.tls_identity.server_name.name = MESHED
    return made


def outcomes():
    """What is to become of each broken message; and of what each port is told."""

    def expected(table):
        rejected = {name: "rejected" for name in table["rejected"]}
        return rejected | {name: then for name, (_, then) in table["tolerated"].items()}

    return {
        "policies": expected(violations.OUTBOUND),
        "endpoints": expected(violations.ENDPOINTS),
        "ports": {str(port): how for port, how in PORTS.items()},
    }


def changes(table):
    return table["rejected"] | {name: change for name, (change, _) in table["tolerated"].items()}


def handlers(service, **methods):
    def serialize(message):
        return message if isinstance(message, bytes) else message.SerializeToString()

    table = {
        name: grpc.unary_stream_rpc_method_handler(answer, request.FromString, serialize)
        for name, (answer, request) in methods.items()
    }
    return grpc.method_handlers_generic_handler(f"io.linkerd.proxy.{service}", table)


def main():
    if sys.argv[1] == "list":
        return print(json.dumps(outcomes()))
    # A stream takes a thread for as long as it is open.
    threads = concurrent.futures.ThreadPoolExecutor(max_workers=1000)
    server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(
        (
            handlers("outbound.OutboundPolicies", Watch=(watch_outbound, outbound.TrafficSpec)),
            handlers(
                "destination.Destination",
                Get=(get_destination, destination.GetDestination),
                GetProfile=(get_profile, destination.GetDestination),
            ),
            handlers("inbound.InboundServerPolicies", WatchPort=(watch_port, inbound.PortSpec)),
        )
    )
    if len(sys.argv) > 2:
        # Not everybody who lists what there is has what it needs.
        import authority
        import identity_pb2 as identity

        certify = grpc.unary_unary_rpc_method_handler(
            authority.Authority(sys.argv[2]).certify,
            identity.CertifyRequest.FromString,
            identity.CertifyResponse.SerializeToString,
        )
        service = "io.linkerd.proxy.identity.Identity"
        handler = grpc.method_handlers_generic_handler(service, {"Certify": certify})
        server.add_generic_rpc_handlers((handler,))
    print("port", server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


main()
