"""What h11, a strict reader of HTTP/1.1, makes of the bytes of one connection, and where berth is stricter on purpose.

Each line of stdin is a connection's bytes in hex; each line of stdout says, in JSON, which requests a server that reads
with h11 would have served, in order, and how the connection ended:

- `open`: everything was read, and another request may follow;
- `closed`: the last request was the last one that may be served here;
- `incomplete`: more bytes are needed;
- `error`: h11 refuses what follows;
- `refused`: h11 would serve it, but berth has a rule of its own; `statuses` has the answers that may be given for it.

The rules are stated here a second time, independently of berth's source, as regular expressions over the raw bytes.
Differences of the other kind, where berth takes what h11 refuses, are three: one empty line in front of a request
(RFC 9112, 2.2 wants it to be ignored); a Content-Length with any number of leading zeros (h11 counts 20 digits); and
what a Content-Length or Transfer-Encoding among the trailers says, since trailers have only to be well-formed: berth
forgets them all.
"""

import ipaddress
import json
import re
import sys

import h11
import h11._headers
import h11._readers

h11._headers.CONTENT_LENGTH_MAX_DIGITS = 1 << 20
h11._readers.EndOfMessage = lambda headers=(): h11.EndOfMessage()

METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"}
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
ONCE = {b"content-length", b"transfer-encoding", b"expect", b"origin", b"sec-websocket-key",
        b"sec-websocket-version"}
CAP = 32 << 20
HEAD_BYTES = 16 << 10
FIELDS = 100


def authority(text):
    """(host, port) or None; the port is None where there is none."""
    found = re.fullmatch(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~%!$&'()*+,;=-]*))(?::([0-9]*))?", text)
    if not found:
        return None
    six, name, port = found.groups()
    if port and int(port) > 65535:
        return None
    if six is not None:
        try:
            host = ipaddress.IPv6Address(six.decode())
        except ValueError:
            return None
        host = host.ipv4_mapped or host
    else:
        host = re.sub(rb"\.$", b"", name).lower()
        try:
            host = ipaddress.IPv4Address(host.decode())
        except ValueError:
            pass
    return host, int(port) if port else None


def is_local(host):
    if isinstance(host, bytes):
        return host == b"localhost" or host.endswith(b".localhost")
    return host.is_loopback


def same(one, other, default):
    return one[0] == other[0] and (default if one[1] is None else one[1]) == (default if other[1] is None else other[1])


def split_url(target):
    """(scheme's port, authority, the rest) of an absolute URL, or None."""
    found = re.fullmatch(rb"(https?)://([^/?]*)(.*)", target, re.I | re.S)
    return found and ({b"http": 80, b"https": 443}[found[1].lower()], found[2], found[3])


def origin_form(target):
    url = None if target.startswith(b"/") else split_url(target)
    return (url[2] or b"/") if url else target


def head_statuses(raw, request, in_front):
    """The answers that berth's own rules allow for this head; none: it goes in."""
    wrong = set()
    if in_front + len(raw) > HEAD_BYTES:
        wrong.add(431)
    if not re.fullmatch(rb"(?:[\t\x20-\x7e]*\r\n)+", raw):
        # LF without CR, CR without LF, control characters, bytes that are not ASCII.
        wrong.add(400)
        return wrong
    eleven = request.http_version == b"1.1"
    if request.http_version not in (b"1.0", b"1.1"):
        wrong.add(505)
    if request.method not in METHODS:
        wrong.add(501)
    lines = raw[:-4].split(b"\r\n")[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        wrong.add(400)
    if len(lines) > FIELDS:
        wrong.add(431)
    if wrong:
        return wrong
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    every = lambda wanted: [value for name, value in fields if name == wanted]
    first = lambda wanted: (every(wanted) or [None])[0]
    if any(len(every(name)) > 1 for name in ONCE):
        wrong.add(400)
    length, coding = first(b"content-length"), first(b"transfer-encoding")
    if length is not None and not re.fullmatch(rb"[0-9]+", length):
        wrong.add(400)
    elif length is not None and int(length) > CAP:
        wrong.add(413)
    if coding is not None and (length is not None or not eleven):
        wrong.add(400)
    host = first(b"host")
    called = None if host is None else authority(host)
    if host is not None and called is None:
        wrong.add(400)
    elif called and not is_local(called[0]):
        wrong.add(403)
    target = request.target
    if b"#" in target:
        wrong.add(400)
    if not target.startswith(b"/") and not (target == b"*" and request.method == b"OPTIONS"):
        url = split_url(target)
        named = url and authority(url[1])
        if not named or not called or not same(named, called, url[0]) or url[2][:1] not in (b"", b"/"):
            wrong.add(400)
    options = [option.strip(b" \t").lower() for value in every(b"connection") for option in value.split(b",")]
    options = [option for option in options if option]
    if not all(re.fullmatch(TOKEN, option) for option in options):
        wrong.add(400)
    if {b"host", b"content-length", b"transfer-encoding", b"authorization"} & set(options):
        wrong.add(400)
    offered = [protocol.strip(b" \t").lower() for value in every(b"upgrade") for protocol in value.split(b",")]
    upgrade = b"websocket" in offered
    if upgrade:
        key = first(b"sec-websocket-key") or b""
        whole = request.method == b"GET" and eleven \
            and b"upgrade" in options and first(b"sec-websocket-version") == b"13" \
            and re.fullmatch(rb"[A-Za-z0-9+/]{21}[AQgw]==", key)
        if not whole or length is not None or coding is not None:
            wrong.add(400)
    elif b"upgrade" in options and not offered:
        wrong.add(400)
    origin = first(b"origin")
    if origin is not None and (upgrade or request.method not in (b"GET", b"HEAD", b"OPTIONS")):
        url = split_url(origin)
        from_ = url and not url[2] and authority(url[1])
        if not from_ or not called or not same(from_, called, url[0]):
            wrong.add(403)
    expect = first(b"expect")
    if expect is not None and eleven and expect.lower() != b"100-continue":
        wrong.add(417)
    return wrong


def chunk_statuses(raw, complete):
    """The same for a chunked body that h11 has read, whole or as far as it came."""
    at = 0
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return set()
        line = raw[at:end]
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e]{0,256}|[ \t]{0,256})", line):
            return {400}
        size = int(re.match(rb"[0-9A-Fa-f]+", line)[0], 16)
        if size > CAP:
            return {413}
        at = end + 2
        if size == 0:
            break
        at += size + 2
        if at > len(raw):
            return set()
    wrong = set()
    if complete and not re.fullmatch(rb"(?:" + TOKEN + rb":[\t\x20-\x7e]*\r\n)*\r\n", raw[at:]):
        wrong.add(400)
    # Not those that close the lines.
    if len(raw) - at > 8 << 10:
        wrong.add(431)
    return wrong


def read(data):
    served, at = [], 0
    told = lambda end, statuses=(): {"requests": served, "end": end, "statuses": sorted(statuses)}
    while True:
        in_front = 2 if data[at:at + 2] == b"\r\n" else 0
        at += in_front
        rest = data[at:]
        if not rest:
            return told("open")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 30)
        connection.receive_data(rest)
        body, raw_head, complete, broken = b"", b"", False, False
        request = None
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    break
                if isinstance(event, h11.Request):
                    request = event
                    raw_head = rest[:len(rest) - len(connection.trailing_data[0])]
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    complete = True
                    break
        except h11.RemoteProtocolError:
            broken = True
        if request is None:
            return told("error" if broken else "incomplete")
        statuses = head_statuses(raw_head, request, in_front)
        used = len(rest) - len(connection.trailing_data[0])
        chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
        if not statuses and chunked and not broken:
            statuses = chunk_statuses(rest[len(raw_head):used], complete)
        one = {
            "method": request.method.decode("latin-1"),
            "target": origin_form(request.target).decode("latin-1"),
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers],
            "body": body.hex(),
            "chunked": chunked,
        }
        if statuses:
            return told("refused", statuses) | {"last": one}
        if broken or not complete:
            return told("error" if broken else "incomplete") | {"last": one}
        served.append(one)
        connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            return told("closed")
        at += used


for line in sys.stdin:
    print(json.dumps(read(bytes.fromhex(line.strip()))), flush=True)
