"""Reads our control plane, and a proxy's tap, without any code of ours.

Arguments: the control plane's address, its folder, the address of a proxy's tap, and of a listener
of that proxy that leads to an application.
"""

import ipaddress
import json
import os
import queue
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc

import checklist
import destination_pb2 as destination
import inbound_pb2 as inbound
import net_pb2 as net
import outbound_pb2 as outbound
import tap_pb2 as tap
from mesh.ext.v1 import extensions_pb2 as extensions
from mesh.ext.v1 import mesh_pb2 as mesh

SERVICES = ["web", "typed-http", "typed-h2", "typed-grpc", "typed-tcp", "empty", "tuned"]
WORKLOADS = ['{"ns":"test","pod":"client"}', "test:client"]
# The first message of a stream is due at once.
AT_ONCE = 2

target, folder, tap_target, listener = sys.argv[1:]
channel = grpc.insecure_channel(target)


def call(service, method, request, reply, channel=channel, stream=False):
    kind = channel.unary_stream if stream else channel.unary_unary
    made = kind(f"/{service}/{method}", request.SerializeToString, reply.FromString)
    return made(request, timeout=20)


def stream(*args, **more):
    """A stream's messages, on a queue; `None` is its end."""
    messages = queue.Queue()

    def read():
        try:
            for message in call(*args, stream=True, **more):
                messages.put(message)
        except grpc.RpcError as error:
            messages.put(error)
        messages.put(None)

    threading.Thread(target=read, daemon=True).start()
    return messages


def first(messages):
    message = messages.get(timeout=AT_ONCE)
    if isinstance(message, grpc.RpcError):
        raise message
    assert message is not None, "the stream ended"
    return message


def refused(code, ask):
    try:
        ask()
    except grpc.RpcError as error:
        assert error.code() == code, error
        assert error.details(), "says why"
    else:
        raise AssertionError(f"not refused with {code}")


def address(ip, port):
    ip = net.IPAddress(ipv4=int(ipaddress.IPv4Address(ip)))
    return net.TcpAddress(ip=ip, port=port)


def watch_outbound(workload=WORKLOADS[0], **target):
    spec = outbound.TrafficSpec(source_workload=workload, **target)
    service = "io.linkerd.proxy.outbound.OutboundPolicies"
    return stream(service, "Watch", spec, outbound.OutboundPolicy)


def get_outbound(**target):
    spec = outbound.TrafficSpec(source_workload=WORKLOADS[0], **target)
    service = "io.linkerd.proxy.outbound.OutboundPolicies"
    return call(service, "Get", spec, outbound.OutboundPolicy)


def destinations(method, path, reply):
    request = destination.GetDestination(
        scheme="k8s", path=path, context_token='{"ns":"test","pod":"client"}'
    )
    return stream("io.linkerd.proxy.destination.Destination", method, request, reply)


def get(path):
    return destinations("Get", path, destination.Update)


def get_profile(path):
    return destinations("GetProfile", path, destination.DestinationProfile)


def cluster_ips():
    request = mesh.Selector(kind="service", namespace="test")
    reply = call("mesh.ext.v1.Mesh", "Resources", request, mesh.ResourcesReply)
    return {workload.ref.name: workload.cluster_ip for workload in reply.workloads}


def policies_hold_to_the_rules():
    ips = cluster_ips()
    assert set(SERVICES) <= set(ips), ips
    kinds = {}
    for service in SERVICES:
        authorities = [f"{service}.test.svc.cluster.local:80", f"{service}:80", f"{service}.test:80"]
        targets = [{"authority": authority} for authority in authorities]
        targets.append({"addr": address(ips[service], 80)})
        policies = [first(watch_outbound(**target)) for target in targets]
        policies.append(get_outbound(**targets[0]))
        policies.append(first(watch_outbound(workload=WORKLOADS[1], **targets[1])))
        for policy in policies:
            checklist.outbound(policy)
            assert policy == policies[0], "however it is named, it is the same service"
        kinds[service] = policies[0].protocol.WhichOneof("kind")
        for path in checklist.paths(policies[0]):
            if path.startswith("missing."):
                refused(grpc.StatusCode.NOT_FOUND, lambda: first(get(path)))
            else:
                checklist.update(first(get(path)))
        for path in (authorities[0], f"{ips[service]}:80"):
            profile = first(get_profile(path))
            checklist.profile(profile, policies[0])
            assert profile.fully_qualified_name.startswith(service), profile
    assert kinds == {
        "web": "detect",
        "typed-http": "http1",
        "typed-h2": "http2",
        "typed-grpc": "grpc",
        "typed-tcp": "opaque",
        "empty": "detect",
        "tuned": "detect",
    }


def routes_are_passed_on():
    detect = get_outbound(authority="web.test:80").protocol.detect
    [route] = detect.http1.routes
    assert route.metadata.resource.kind == "HTTPRoute" and route.metadata.resource.name == "web"
    assert list(detect.http1.routes) == list(detect.http2.routes)
    api, rest = route.rules
    [match] = api.matches
    assert match.path.prefix == "/api"
    assert (match.method.WhichOneof("type"), match.method.registered) == ("registered", 0), "GET"
    assert [(h.name, h.exact) for h in match.headers] == [("x-tenant", b"one")]
    assert [(q.name, q.exact) for q in match.query_params] == [("v", "2")]
    backends = api.backends.random_available.backends
    weights = {b.backend.backend.metadata.resource.name: b.weight for b in backends}
    assert weights == {"web": 3, "empty": 1}, weights
    assert api.timeouts.request.seconds == 5 and api.retry.max_retries == 2
    ranges = [(r.start, r.end) for r in api.retry.conditions.status_ranges]
    assert (503, 503) in ranges or (503, 504) in ranges, ranges
    kinds = [filter.WhichOneof("kind") for filter in api.filters]
    assert kinds == ["request_header_modifier", "response_header_modifier"], kinds
    # A rule whose backend does not exist fails its requests, and only those.
    assert rest.backends.WhichOneof("kind"), rest

    grpc_routes = get_outbound(authority="typed-grpc.test:80").protocol.grpc.routes
    [grpc_match] = grpc_routes[0].rules[0].matches
    assert (grpc_match.rpc.service, grpc_match.rpc.method) == ("shop.Tax", "Compute")
    accrual = get_outbound(authority="tuned.test:80").protocol.detect.http1.failure_accrual
    assert accrual.consecutive_failures.max_failures == 3, accrual


def unknown_targets_are_refused():
    for unknown in ("nobody.test:80", "web.test:81", "www.example.com:80"):
        refused(grpc.StatusCode.NOT_FOUND, lambda: first(watch_outbound(authority=unknown)))
        refused(grpc.StatusCode.NOT_FOUND, lambda: first(get(unknown)))
    outside = address("192.0.2.1", 80)
    refused(grpc.StatusCode.NOT_FOUND, lambda: first(watch_outbound(addr=outside)))
    for malformed in ("web:http", "a..b:80", ":80"):
        malformed_authority = {"authority": malformed}
        refused(
            grpc.StatusCode.INVALID_ARGUMENT, lambda: first(watch_outbound(**malformed_authority))
        )
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: first(watch_outbound()))
    refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: first(get("")))


def addresses_have_profiles():
    pod = json.load(open(f"{folder}/pods/test.web.json"))["status"]["podIP"]
    profile = first(get_profile(f"{pod}:8080"))
    checklist.profile(profile)
    assert profile.endpoint.addr == address(pod, 8080), profile
    assert profile.endpoint.protocol_hint.WhichOneof("protocol") == "h2", profile
    unknown = first(get_profile("192.0.2.1:443"))
    checklist.profile(unknown)
    assert not unknown.HasField("endpoint") and not unknown.opaque_protocol
    database = first(get_profile("192.0.2.1:3306"))
    assert database.opaque_protocol, "as the protocol of this port always has been"


def endpoints_change_by_what_changed():
    updates = get("web.test.svc.cluster.local:80")
    update = first(updates)
    checklist.update(update)
    [only] = update.add.addrs
    assert only.metric_labels["pod"] == "web", only
    empty = first(get("empty.test.svc.cluster.local:80"))
    assert empty.no_endpoints.exists, empty

    pod = json.load(open(f"{folder}/pods/test.web.json"))
    pod["metadata"]["name"] = "second"
    pod["status"]["podIP"] = "127.9.9.9"
    path = f"{folder}/pods/test.second.json"
    with open(path + ".new", "w") as file:
        json.dump(pod, file)
    os.rename(path + ".new", path)
    added = updates.get(timeout=10)
    checklist.update(added)
    assert [e.addr for e in added.add.addrs] == [address("127.9.9.9", 8080)], added
    os.remove(path)
    removed = updates.get(timeout=10)
    assert list(removed.remove.addrs) == [address("127.9.9.9", 8080)], removed


def ports_have_policies():
    service = "io.linkerd.proxy.inbound.InboundServerPolicies"
    for port in (8080, 3306, 1):
        for workload in ('{"ns":"test","pod":"web"}', "test:web"):
            spec = inbound.PortSpec(workload=workload, port=port)
            watched = first(stream(service, "WatchPort", spec, inbound.Server))
            checklist.server(watched)
            assert call(service, "GetPort", spec, inbound.Server) == watched
    for workload, port in (("", 80), ("{", 80), ("test:web", 70_000)):
        spec = inbound.PortSpec(workload=workload, port=port)
        refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            lambda: first(stream(service, "WatchPort", spec, inbound.Server)),
        )


def extensions_are_told():
    def watch(name):
        key = extensions.ResourceKey(
            group="core", kind="Service", name=name, namespace="test", port=80
        )
        service = "mesh.ext.v1.Extensions"
        return first(stream(service, "WatchBackend", key, extensions.BackendExtension))

    assert watch("web").strategy == extensions.BackendExtension.PEAK_EWMA
    tuned = watch("tuned")
    assert tuned.strategy == extensions.BackendExtension.RING_HASH, tuned
    assert tuned.hash_header == "x-session", tuned


def people_are_answered():
    def ask(method, request, reply):
        return call("mesh.ext.v1.Mesh", method, request, reply)

    info = ask("Info", mesh.InfoRequest(), mesh.InfoReply)
    assert (info.source, info.pods, info.services) == ("local", 2, len(SERVICES)), info
    deployments = mesh.Selector(kind="deployment", namespace="test")
    stat = mesh.StatRequest(selectors=[deployments], window_seconds=10)
    assert len(ask("Stat", stat, mesh.StatReply).rows) >= 1
    proxies = ask("Proxies", mesh.Selector(kind="namespace", name="test"), mesh.ProxiesReply)
    assert all(proxy.reachable and proxy.ready for proxy in proxies.proxies), proxies
    assert {proxy.pod for proxy in proxies.proxies} == {"client", "web"}
    endpoints = mesh.EndpointsRequest(authority="web.test:80", from_proxies=True)
    assert [e.pod for e in ask("Endpoints", endpoints, mesh.EndpointsReply).endpoints] == ["web"]


def answered(opener, url):
    """Asks until there is an answer: endpoints that have just come and gone are not known at once."""
    end = time.monotonic() + 30
    while True:
        try:
            return opener.open(url).read()
        except urllib.error.HTTPError:
            assert time.monotonic() < end, f"{url} is never answered"
            time.sleep(0.05)


def a_proxy_can_be_tapped():
    request = tap.ObserveRequest(
        limit=3,
        match=tap.ObserveRequest.Match(
            http=tap.ObserveRequest.Match.Http(
                path=tap.ObserveRequest.Match.Http.StringMatch(prefix="/tapped")
            )
        ),
    )
    observing = grpc.insecure_channel(tap_target)
    service = "io.linkerd.proxy.tap.Tap"
    events = stream(service, "Observe", request, tap.TapEvent, channel=observing)
    seen = []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answered(opener, f"http://{listener}/other")
    # The tap begins some time after it was asked for.
    for _ in range(1000):
        for path in ("/tapped/a", "/other"):
            opener.open(f"http://{listener}{path}").read()
        while not events.empty():
            seen.append(events.get())
        if len(seen) >= 9:
            break
    assert seen[-1] is None or len(seen) >= 9, seen
    http = [event.http for event in seen if event is not None]
    assert [event.WhichOneof("event") for event in http[:3]] == [
        "request_init",
        "response_init",
        "response_end",
    ]
    assert http[0].request_init.path == "/tapped/a", http[0]
    assert http[1].response_init.http_status == 200, http[1]
    assert len({event.request_init.id.stream for event in http[::3]}) == 3, "three requests"
    assert all(event.proxy_direction == tap.TapEvent.OUTBOUND for event in seen if event)


for check in (
    policies_hold_to_the_rules,
    routes_are_passed_on,
    unknown_targets_are_refused,
    addresses_have_profiles,
    endpoints_change_by_what_changed,
    ports_have_policies,
    extensions_are_told,
    people_are_answered,
    a_proxy_can_be_tapped,
):
    check()
    print(check.__name__)
