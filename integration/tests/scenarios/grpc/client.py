"""A gRPC client that checks what passes. Arguments: target, then the checks to run (all)."""

import concurrent.futures
import os
import sys
import threading
import time

import grpc

AUTHORITY = "echo.test:80"
TIMEOUT = 25


class Echo:
    def __init__(self, channel):
        def method(kind, name):
            return getattr(channel, kind)(f"/test.Echo/{name}")

        self.unary = method("unary_unary", "Unary")
        self.server_streaming = method("unary_stream", "ServerStreaming")
        self.client_streaming = method("stream_unary", "ClientStreaming")
        self.bidirectional = method("stream_stream", "Bidirectional")
        self.fail = method("unary_unary", "Fail")
        self.fail_late = method("unary_stream", "FailLate")
        self.wait = method("unary_unary", "Wait")
        self.endless = method("unary_stream", "Endless")
        self.remaining = method("unary_unary", "Remaining")
        self.ask = method("unary_unary", "Ask")
        self.missing = method("unary_unary", "Missing")

    def count(self, what):
        return int(self.ask(what.encode(), timeout=TIMEOUT))

    def wait_for(self, what, count):
        end = time.monotonic() + 10
        while self.count(what) < count:
            assert time.monotonic() < end, f"{what} never happened"
            time.sleep(0.01)


def same(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


def unary(echo):
    binary = bytes(range(256))
    metadata = (("x-ask", "what is it"), ("x-ask-bin", binary))
    answer, call = echo.unary.with_call(b"hello", metadata=metadata, timeout=TIMEOUT)
    same(answer, b"hello")
    same(dict(call.initial_metadata())["x-initial"], "what is it")
    same(dict(call.trailing_metadata())["x-trailing"], "end")
    same(dict(call.trailing_metadata())["x-trailing-bin"], binary)
    same(echo.unary(b"", timeout=TIMEOUT), b"")
    large = bytes(range(256)) * 12_000
    same(echo.unary(large, timeout=TIMEOUT), large)
    same(echo.unary(large, timeout=TIMEOUT, compression=grpc.Compression.Gzip), large)


def server_streaming(echo):
    answers = list(echo.server_streaming(b"1000 10", timeout=TIMEOUT))
    same([int.from_bytes(answer[:4], "big") for answer in answers], list(range(1000)))
    same(list(echo.server_streaming(b"0 0", timeout=TIMEOUT)), [])


def client_streaming(echo):
    same(echo.client_streaming((b"x" * n for n in range(100)), timeout=TIMEOUT), b"4950")
    same(echo.client_streaming(iter(()), timeout=TIMEOUT), b"0")


def bidirectional(echo):
    heard = threading.Semaphore(0)

    def questions():
        for number in range(50):
            yield f"question {number}".encode()
            # The next one only when this one has been answered.
            assert heard.acquire(timeout=TIMEOUT)

    for number, answer in enumerate(echo.bidirectional(questions(), timeout=TIMEOUT)):
        same(answer, f"QUESTION {number}".encode())
        heard.release()
    same(number, 49)


def hundred_megabytes(echo):
    size, amount = 1 << 20, 100
    total = sum(
        len(answer) - 4
        for answer in echo.server_streaming(f"{amount} {size}".encode(), timeout=TIMEOUT)
    )
    same(total, amount * size)
    part = bytes(size)
    same(
        echo.client_streaming((part for _ in range(amount)), timeout=TIMEOUT),
        str(amount * size).encode(),
    )


def statuses(echo):
    for code in grpc.StatusCode:
        number = code.value[0]
        if number == 0:
            continue
        try:
            echo.fail(str(number).encode(), timeout=TIMEOUT)
            raise AssertionError(f"{code} did not arrive")
        except grpc.RpcError as error:
            same(error.code(), code)
            same(error.details(), "as asked: 100 % of it, über alles")
            same(dict(error.trailing_metadata())["x-why"], "asked")
            assert "l5d-proxy-error" not in dict(error.trailing_metadata())
        same(echo.count(f"fail {number}"), 1)


def late_statuses(echo):
    answers = echo.fail_late(b"", timeout=TIMEOUT)
    same(next(answers), b"first")
    try:
        next(answers)
        raise AssertionError("no status")
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        same(error.details(), "enough")


def missing_methods(echo):
    try:
        echo.missing(b"", timeout=TIMEOUT)
        raise AssertionError("no status")
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.UNIMPLEMENTED)


def deadlines(echo):
    began = time.monotonic()
    try:
        echo.wait(b"", timeout=0.3)
        raise AssertionError("no deadline")
    except grpc.RpcError as error:
        same(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 5
    echo.wait_for("wait cancelled", 1)
    left = float(echo.remaining(b"", timeout=20))
    # Rounded on its way: the header has at most eight digits.
    assert 10 < left < 21, left


def cancellation(echo):
    call = echo.wait.future(b"", timeout=TIMEOUT)
    echo.wait_for("wait began", 2)
    call.cancel()
    echo.wait_for("wait cancelled", 2)
    answers = echo.endless(b"", timeout=TIMEOUT)
    same([next(answers) for _ in range(3)], [b"more"] * 3)
    answers.cancel()
    echo.wait_for("endless cancelled", 1)


def many_at_once(echo):
    def call(number):
        text = str(number).encode() * 100
        same(echo.unary(text, timeout=TIMEOUT), text)

    with concurrent.futures.ThreadPoolExecutor(max_workers=50) as pool:
        for done in [pool.submit(call, number) for number in range(500)]:
            done.result()


CHECKS = [
    unary,
    server_streaming,
    client_streaming,
    bidirectional,
    hundred_megabytes,
    statuses,
    late_statuses,
    missing_methods,
    deadlines,
    cancellation,
    many_at_once,
]


def main():
    target, *wanted = sys.argv[1:]
    options = [
        ("grpc.default_authority", AUTHORITY),
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.enable_retries", 0),
    ]
    if "CA" in os.environ:
        with open(os.environ["CA"], "rb") as file:
            roots = grpc.ssl_channel_credentials(file.read())
        options.append(("grpc.ssl_target_name_override", AUTHORITY.split(":")[0]))
        opened = grpc.secure_channel(target, roots, options=options)
    else:
        opened = grpc.insecure_channel(target, options=options)
    with opened as channel:
        echo = Echo(channel)
        for check in CHECKS:
            if not wanted or check.__name__ in wanted:
                began = time.monotonic()
                check(echo)
                print(f"{check.__name__} {time.monotonic() - began:.2f} s")


main()
