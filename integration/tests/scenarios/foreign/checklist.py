"""What a control plane must hold to in what it sends, written down a second time.

See `crates/api/src/validate.rs` for the first; neither knows of the other. Each function raises
AssertionError with the place of what is wrong.
"""


class Place(str):
    """Where in a message we are."""

    def __truediv__(self, name):
        return Place(f"{self}.{name}")

    def holds(self, condition, rule):
        assert condition, f"{self}: {rule}"


def each(items, place, name):
    return ((item, place / f"{name}[{number}]") for number, item in enumerate(items))


def duration(message, field, place):
    place.holds(message.HasField(field), f"{field} is there")
    value = getattr(message, field)
    place.holds(value.seconds >= 0 and 0 <= value.nanos < 10**9, f"{field} is not negative")
    return value.seconds + value.nanos / 1e9


def metadata(message, place):
    place.holds(message.HasField("metadata"), "metadata is there")
    kind = message.metadata.WhichOneof("kind")
    place.holds(kind, "metadata is of some kind")
    if kind == "default":
        return place.holds(message.metadata.default, "the default has a name")
    resource = message.metadata.resource
    for part in ("group", "kind", "name", "namespace"):
        place.holds(getattr(resource, part), f"the resource has a {part}")


def outbound(policy):
    place = Place("policy")
    metadata(policy, place)
    kind = policy.protocol.WhichOneof("kind")
    place.holds(kind, "there is a protocol")
    protocol, place = getattr(policy.protocol, kind), place / kind
    if kind == "detect":
        place.holds(duration(protocol, "timeout", place) > 0, "the timeout is more than 0")
        for part in ("opaque", "http1", "http2"):
            place.holds(protocol.HasField(part), f"{part} is there")
        opaque_routes(protocol.opaque, place / "opaque")
        http_routes(protocol.http1, place / "http1")
        http_routes(protocol.http2, place / "http2")
    elif kind in ("http1", "http2", "grpc"):
        http_routes(protocol, place)
    else:
        opaque_routes(protocol, place)


def opaque_routes(protocol, place):
    place.holds(len(protocol.routes) == 1, "there is exactly one route")
    for route, place in each(protocol.routes, place, "routes"):
        metadata(route, place)
        place.holds(len(route.rules) == 1, "there is exactly one rule")
        distribution(route.rules[0], place / "rules[0]")


def http_routes(protocol, place):
    if protocol.HasField("failure_accrual"):
        accrual = protocol.failure_accrual
        kind = accrual.WhichOneof("kind")
        place.holds(kind, "a breaker is of some kind")
        backoff(getattr(accrual, kind), place / "failure_accrual")
    place.holds(protocol.routes, "there are routes")
    for route, place in each(protocol.routes, place, "routes"):
        metadata(route, place)
        place.holds(route.rules, "there are rules")
        for rule, place in each(route.rules, place, "rules"):
            if rule.HasField("retry"):
                place.holds(rule.retry.HasField("conditions"), "a retry has conditions")
                if rule.retry.HasField("backoff"):
                    backoff(rule.retry, place / "retry")
            for filter, place_of in each(rule.filters, place, "filters"):
                place_of.holds(filter.WhichOneof("kind"), "a filter is of some kind")
            distribution(rule, place)


def backoff(message, place):
    place.holds(message.HasField("backoff"), "there is a backoff")
    least = duration(message.backoff, "min_backoff", place)
    most = duration(message.backoff, "max_backoff", place)
    place.holds(0 < least <= most, "0 < min_backoff <= max_backoff")
    place.holds(message.backoff.jitter_ratio >= 0, "jitter is not negative")


def distribution(rule, place):
    place = place / "backends"
    kind = rule.backends.WhichOneof("kind")
    place.holds(kind, "it is of some kind")
    if kind == "empty":
        return
    backends = getattr(rule.backends, kind).backends
    place.holds(backends, "there are backends")
    if kind == "random_available":
        place.holds(any(backend.weight for backend in backends), "some weight is above 0")
        backends = [weighted.backend for weighted in backends]
    for route_backend, place_of in each(backends, place, "backends"):
        place_of.holds(route_backend.HasField("backend"), "a backend is there")
        backend(route_backend.backend, place_of)


def backend(backend, place):
    metadata(backend, place)
    place.holds(backend.HasField("queue") and backend.queue.capacity > 0, "it has a queue")
    place.holds(duration(backend.queue, "failfast_timeout", place) > 0, "which fails fast")
    kind = backend.WhichOneof("kind")
    place.holds(kind, "it is of some kind")
    if kind == "forward":
        endpoint(backend.forward, place / "forward")
        return place.holds(0 < backend.forward.addr.port < 65536, "the port is one")
    balancer, place = backend.balancer, place / "balancer"
    place.holds(balancer.discovery.WhichOneof("kind") == "dst", "endpoints are asked for")
    name, _, port = balancer.discovery.dst.path.rpartition(":")
    place.holds(name and 0 < int(port) < 65536, "by name:port")
    load = balancer.WhichOneof("load")
    place.holds(load, "there is a load estimate")
    place.holds(duration(getattr(balancer, load), "default_rtt", place) > 0, "default_rtt > 0")
    place.holds(duration(getattr(balancer, load), "decay", place) > 0, "decay > 0")


def paths(message):
    """All paths that the balancers in a policy ask for."""
    found = set()
    if message.DESCRIPTOR.name == "DestinationGet":
        found.add(message.path)
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        for part in value if not hasattr(value, "ListFields") else [value]:
            found |= paths(part)
    return found


def endpoint(endpoint, place):
    place.holds(endpoint.addr.ip.WhichOneof("ip"), "it has an address")
    if endpoint.HasField("resource_ref"):
        place.holds(endpoint.resource_ref.WhichOneof("kind"), "its resource is of some kind")
    if endpoint.HasField("tls_identity"):
        identity = endpoint.tls_identity
        place.holds(identity.WhichOneof("strategy"), "an identity is of some kind")
        place.holds(identity.server_name.name, "an identity has a server name")


def update(update):
    place = Place("update")
    kind = update.WhichOneof("update")
    place.holds(kind, "it says something")
    if kind == "add":
        for added, place_of in each(update.add.addrs, place, "add"):
            endpoint(added, place_of)
            place_of.holds(0 < added.addr.port < 65536, "the port is one")


def profile(profile, policy=None):
    place = Place("profile")
    place.holds(not profile.routes, "routing is left to the policy")
    place.holds(not profile.dst_overrides, "splitting is left to the policy")
    place.holds(not profile.HasField("retry_budget"), "retrying is left to the policy")
    both = profile.fully_qualified_name and profile.HasField("endpoint")
    place.holds(not both, "it is of a service or of an endpoint")
    if profile.HasField("endpoint"):
        endpoint(profile.endpoint, place / "endpoint")
    if policy and profile.opaque_protocol:
        kind = policy.protocol.WhichOneof("kind")
        place.holds(kind in ("detect", "opaque"), "opaque only where the policy is, or detects")


def server(server):
    place = Place("server")
    for label in ("group", "kind", "name"):
        place.holds(server.labels.get(label), f"there is a label {label}")
    kind = server.protocol.WhichOneof("kind")
    place.holds(kind, "there is a protocol")
    protocol = getattr(server.protocol, kind)
    authorizations(server, place)
    if kind == "detect":
        place.holds(duration(protocol, "timeout", place) > 0, "the timeout is more than 0")
    routes = protocol.http_routes if kind == "detect" else getattr(protocol, "routes", [])
    for route, place_of in each(routes, place / kind, "routes"):
        metadata(route, place_of)
        place_of.holds(route.rules, "there are rules")
        authorizations(route, place_of)


def authorizations(message, place):
    for authz, place_of in each(message.authorizations, place, "authorizations"):
        metadata(authz, place_of)
        place_of.holds(authz.networks, "there are networks")
        permit = authz.authentication.WhichOneof("permit")
        place_of.holds(permit, "there is an authentication")
        if permit == "meshTLS":
            place_of.holds(authz.authentication.meshTLS.WhichOneof("clients"), "of clients")
