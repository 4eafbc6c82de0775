"""Messages of linkerd2-proxy-api as a careful control plane makes them."""

import ipaddress

import destination_pb2 as destination
import http_route_pb2 as http_route
import http_types_pb2 as http_types
import inbound_pb2 as inbound
import meta_pb2 as meta
import net_pb2 as net
import opaque_route_pb2 as opaque_route
import outbound_pb2 as outbound
from google.protobuf.duration_pb2 import Duration


def seconds(amount):
    return Duration(seconds=int(amount), nanos=round(amount % 1 * 1e9))


def tcp_address(text):
    host, port = text.rsplit(":", 1)
    ip = net.IPAddress(ipv4=int(ipaddress.IPv4Address(host)))
    return net.TcpAddress(ip=ip, port=int(port))


def metadata(kind, name, port=0):
    group = "core" if kind == "Service" else "gateway.networking.k8s.io"
    resource = meta.Resource(group=group, kind=kind, name=name, namespace="test", port=port)
    return meta.Metadata(resource=resource)


def endpoint(text, h2=False):
    hint = destination.ProtocolHint(h2=destination.ProtocolHint.H2()) if h2 else None
    return destination.WeightedAddr(addr=tcp_address(text), weight=10_000, protocol_hint=hint)


def add(*endpoints):
    return destination.Update(add=destination.WeightedAddrSet(addrs=endpoints))


def remove(*addresses):
    addrs = [tcp_address(address) for address in addresses]
    return destination.Update(remove=destination.AddrSet(addrs=addrs))


def no_endpoints(exists):
    return destination.Update(no_endpoints=destination.NoEndpoints(exists=exists))


def backend(path):
    """Balances over the endpoints of `path`."""
    name, port = path.rsplit(":", 1)
    balancer = outbound.Backend.BalanceP2c(
        discovery=outbound.Backend.EndpointDiscovery(
            dst=outbound.Backend.EndpointDiscovery.DestinationGet(path=path)
        ),
        peak_ewma=outbound.Backend.BalanceP2c.PeakEwma(
            default_rtt=seconds(0.03), decay=seconds(10)
        ),
    )
    return outbound.Backend(
        metadata=metadata("Service", name, int(port)),
        queue=outbound.Queue(capacity=100, failfast_timeout=seconds(0.2)),
        balancer=balancer,
    )


def backoff():
    return outbound.ExponentialBackoff(
        min_backoff=seconds(0.1), max_backoff=seconds(1), jitter_ratio=0.5
    )


def http_rule(path):
    """One of everything that a rule can have, and requests go to `path` all the same."""
    Route = outbound.HttpRoute
    marked = http_types.Headers(
        headers=[http_types.Headers.Header(name="x-policy", value=b"python")]
    )
    return Route.Rule(
        matches=[http_route.HttpRouteMatch(path=http_route.PathMatch(prefix="/"))],
        filters=[
            Route.Filter(request_header_modifier=http_route.RequestHeaderModifier(set=marked)),
            Route.Filter(response_header_modifier=http_route.ResponseHeaderModifier(set=marked)),
        ],
        backends=Route.Distribution(
            random_available=Route.Distribution.RandomAvailable(
                backends=[
                    Route.WeightedRouteBackend(
                        backend=Route.RouteBackend(backend=backend(path)), weight=1
                    )
                ]
            )
        ),
        timeouts=http_route.Timeouts(request=seconds(10)),
        retry=Route.Retry(
            max_retries=1,
            max_request_bytes=1024,
            conditions=Route.Retry.Conditions(
                status_ranges=[Route.Retry.Conditions.StatusRange(start=503, end=504)]
            ),
            backoff=backoff(),
        ),
    )


def http_protocol(kind, path):
    accrual = outbound.FailureAccrual(
        consecutive_failures=outbound.FailureAccrual.ConsecutiveFailures(
            max_failures=7, backoff=backoff()
        )
    )
    route = outbound.HttpRoute(metadata=metadata("HTTPRoute", "route"), rules=[http_rule(path)])
    return kind(routes=[route], failure_accrual=accrual)


def opaque_protocol(path):
    Route = outbound.OpaqueRoute
    distribution = Route.Distribution(
        first_available=Route.Distribution.FirstAvailable(
            backends=[Route.RouteBackend(backend=backend(path))]
        )
    )
    route = Route(
        metadata=metadata("TCPRoute", "route"), rules=[Route.Rule(backends=distribution)]
    )
    return outbound.ProxyProtocol.Opaque(routes=[route])


def detect_policy(path):
    """Finds out what is spoken and sends it to the endpoints of `path`."""
    name, port = path.rsplit(":", 1)
    Protocol = outbound.ProxyProtocol
    return outbound.OutboundPolicy(
        metadata=metadata("Service", name, int(port)),
        protocol=Protocol(
            detect=Protocol.Detect(
                timeout=seconds(10),
                opaque=opaque_protocol(path),
                http1=http_protocol(Protocol.Http1, path),
                http2=http_protocol(Protocol.Http2, path),
            )
        ),
    )


def authorization():
    everywhere = net.IPNetwork(ip=net.IPAddress(ipv4=0), prefix_len=0)
    return inbound.Authz(
        networks=[inbound.Network(net=everywhere)],
        authentication=inbound.Authn(unauthenticated=inbound.Authn.PermitUnauthenticated()),
        metadata=meta.Metadata(default="everybody"),
        labels={"group": "", "kind": "default", "name": "everybody"},
    )


def server(*authorizations):
    """Finds out what is spoken on a port; only those authorised are let in."""
    any_path = http_route.HttpRouteMatch(path=http_route.PathMatch(prefix="/"))
    route = inbound.HttpRoute(
        metadata=meta.Metadata(default="default"),
        authorizations=authorizations,
        rules=[inbound.HttpRoute.Rule(matches=[any_path])],
    )
    detect = inbound.ProxyProtocol.Detect(timeout=seconds(10), http_routes=[route])
    return inbound.Server(
        protocol=inbound.ProxyProtocol(detect=detect),
        authorizations=authorizations,
        labels={"group": "policy.example", "kind": "Server", "name": "python"},
    )
