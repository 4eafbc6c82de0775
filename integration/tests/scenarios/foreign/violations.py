"""Good messages made bad: each entry breaks one rule that control planes must hold to.

A change gets a good message that leads to `bad`, and breaks it. Rejected ones mean nothing: a
proxy keeps the last good message and counts. Tolerated ones still have one clear meaning, which
requests are told or led by.
"""

import policies


def detect(policy):
    return policy.protocol.detect


def rule(policy):
    return detect(policy).http1.routes[0].rules[0]


def weighted(policy):
    return rule(policy).backends.random_available.backends[0]


def backend(policy):
    return weighted(policy).backend.backend


def accrual(policy):
    return detect(policy).http1.failure_accrual


def forward(policy, address):
    target = backend(policy)
    target.ClearField("balancer")
    target.forward.CopyFrom(policies.endpoint(address))


def unknown(message):
    """What a newer control plane's new variant of a `oneof` is to an older proxy."""
    message.MergeFromString(b"\xfa\x06\x02hi")


def twice(items):
    items.add().CopyFrom(items[0])


def breaker(policy):
    return accrual(policy).consecutive_failures


OUTBOUND_REJECTED = {
    "empty": lambda p: p.Clear(),
    "no-metadata": lambda p: p.ClearField("metadata"),
    "no-protocol": lambda p: p.protocol.Clear(),
    "unknown-protocol": lambda p: (p.protocol.Clear(), unknown(p.protocol)),
    "detect-without-timeout": lambda p: detect(p).ClearField("timeout"),
    "detect-without-opaque": lambda p: detect(p).ClearField("opaque"),
    "detect-without-http1": lambda p: detect(p).ClearField("http1"),
    "detect-without-http2": lambda p: detect(p).ClearField("http2"),
    "opaque-without-route": lambda p: detect(p).opaque.ClearField("routes"),
    "opaque-with-two-routes": lambda p: twice(detect(p).opaque.routes),
    "opaque-with-two-rules": lambda p: twice(detect(p).opaque.routes[0].rules),
    "rule-without-distribution": lambda p: rule(p).ClearField("backends"),
    "unknown-distribution": lambda p: (rule(p).backends.Clear(), unknown(rule(p).backends)),
    "all-weights-zero": lambda p: setattr(weighted(p), "weight", 0),
    "no-backends": lambda p: rule(p).backends.random_available.ClearField("backends"),
    "backend-missing": lambda p: weighted(p).ClearField("backend"),
    "backend-of-no-kind": lambda p: backend(p).ClearField("balancer"),
    "unknown-backend": lambda p: (backend(p).ClearField("balancer"), unknown(backend(p))),
    "no-queue": lambda p: backend(p).ClearField("queue"),
    "no-failfast-timeout": lambda p: backend(p).queue.ClearField("failfast_timeout"),
    "no-discovery": lambda p: backend(p).balancer.ClearField("discovery"),
    "no-load": lambda p: backend(p).balancer.ClearField("peak_ewma"),
    "no-rtt": lambda p: backend(p).balancer.peak_ewma.ClearField("default_rtt"),
    "no-decay": lambda p: backend(p).balancer.peak_ewma.ClearField("decay"),
    "forward-without-port": lambda p: forward(p, "127.0.0.1:0"),
    "retry-without-conditions": lambda p: rule(p).retry.ClearField("conditions"),
    "retry-of-odd-statuses": lambda p: setattr(
        rule(p).retry.conditions.status_ranges[0], "end", 70_000
    ),
    "negative-timeout": lambda p: setattr(rule(p).timeouts.request, "seconds", -1),
    "endless-timeout": lambda p: setattr(rule(p).timeouts.request, "seconds", 1 << 62),
    "breaker-of-no-kind": lambda p: accrual(p).ClearField("consecutive_failures"),
    "breaker-without-backoff": lambda p: breaker(p).ClearField("backoff"),
    "backoff-of-zero": lambda p: breaker(p).backoff.min_backoff.Clear(),
    "backoff-upside-down": lambda p: setattr(breaker(p).backoff.min_backoff, "seconds", 5),
    "jitter-not-a-number": lambda p: setattr(breaker(p).backoff, "jitter_ratio", float("nan")),
    "unknown-filter": lambda p: (rule(p).filters[0].Clear(), unknown(rule(p).filters[0])),
    "malformed-header": lambda p: setattr(
        rule(p).filters[0].request_header_modifier.set.headers[0], "value", b"a\r\nx-forged: b"
    ),
    "malformed-regex": lambda p: setattr(rule(p).matches[0].path, "regex", "(" * 1000),
}

OUTBOUND_TOLERATED = {
    "unknown-field": (unknown, "bad"),
    "group-is-empty": (lambda p: setattr(p.metadata.resource, "group", ""), "bad"),
    "no-routes-for-http2": (lambda p: detect(p).http2.ClearField("routes"), "bad"),
    "odd-nanos": (lambda p: setattr(rule(p).timeouts.request, "nanos", -5), "bad"),
    "path-without-port": (
        lambda p: setattr(backend(p).balancer.discovery.dst, "path", "bad"),
        "bad",
    ),
    "route-without-rules": (
        lambda p: detect(p).http1.routes[0].ClearField("rules"),
        "no-route",
    ),
}


def identity_without_name(update):
    update.add.addrs[0].tls_identity.dns_like_identity.name = "web.test.example"


ENDPOINTS_REJECTED = {
    "empty": lambda u: u.Clear(),
    "unknown-update": lambda u: (u.Clear(), unknown(u)),
    "endpoint-without-address": lambda u: u.add.addrs[0].ClearField("addr"),
    "endpoint-without-ip": lambda u: u.add.addrs[0].addr.ClearField("ip"),
    "endpoint-with-odd-port": lambda u: setattr(u.add.addrs[0].addr, "port", 70_000),
}

# The foreign proxy does the same: it goes on in plaintext.
ENDPOINTS_TOLERATED = {"identity-without-server-name": (identity_without_name, "bad")}


def set_label(server, name, value):
    server.labels[name] = value


def authz(server):
    return server.authorizations[0]


def route(server):
    return server.protocol.detect.http_routes[0]


SERVER_REJECTED = {
    "empty": lambda s: s.Clear(),
    "no-protocol": lambda s: s.protocol.Clear(),
    "unknown-protocol": lambda s: (s.protocol.Clear(), unknown(s.protocol)),
    "detect-without-timeout": lambda s: s.protocol.detect.ClearField("timeout"),
    "authorization-of-no-kind": lambda s: authz(s).authentication.Clear(),
    "unknown-authentication": lambda s: (
        authz(s).authentication.Clear(),
        unknown(authz(s).authentication),
    ),
    "odd-network": lambda s: setattr(authz(s).networks[0].net, "prefix_len", 33),
    "malformed-regex": lambda s: setattr(route(s).rules[0].matches[0].path, "regex", "("),
}

OUTBOUND = {"rejected": OUTBOUND_REJECTED, "tolerated": OUTBOUND_TOLERATED}
ENDPOINTS = {"rejected": ENDPOINTS_REJECTED, "tolerated": ENDPOINTS_TOLERATED}
