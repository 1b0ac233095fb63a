"""What clients saw of a broker, and what of it must never happen.

A history is a list of events in one order. A message is (queue, publisher, number); publishers count their messages
to each queue from 1, and publish each once, so that whatever comes twice comes from the broker.

    ("pub", message, group)        handed to the socket; messages of one group are whole or not there: a fan-out, a transaction
    ("ok", message)                confirmed, or committed
    ("del", message, session, redelivered)
    ("ack", message)               written to the socket
    ("settled", message)           the answer to a later question on that channel has arrived
    ("up", incarnation)            the broker was started, from the first time on
    ("bad", text)                  a body that nobody sent, or in a queue where it does not belong
    ("left", queue, count)         messages that a queue still holds after all was drained, or drained once more
"""

from collections import defaultdict

FATAL = ["lost", "unexpected", "duplicated", "resurrected", "reordered", "late", "holes", "torn_groups", "left"]


def check(history):
    """The verdicts, each a list of offenders. A history is good when all of them are empty."""
    published, confirmed, acked, settled = {}, set(), set(), set()
    delivered, survived, groups, born, incarnation = set(), set(), defaultdict(set), {}, 0
    highest, highest_in_session = defaultdict(int), defaultdict(int)
    verdicts = {name: [] for name in FATAL}
    for event in history:
        kind, message = event[0], event[1]
        if kind == "pub":
            published[message] = event[2]
            born[message] = incarnation
            if event[2] is not None:
                groups[event[2]].add(message)
        elif kind == "up":
            incarnation = message
        elif kind == "ok":
            confirmed.add(message)
        elif kind == "ack":
            acked.add(message)
        elif kind == "settled":
            settled.add(message)
        elif kind == "bad":
            verdicts["unexpected"].append(message)
        elif kind == "left":
            if event[2]:
                verdicts["left"].append((message, event[2]))
        elif kind == "del":
            _, _, session, redelivered = event
            queue, publisher, number = message
            if message not in published:
                verdicts["unexpected"].append(message)
            if message in settled:
                verdicts["resurrected"].append(message)
            if not redelivered:
                if message in delivered:
                    verdicts["duplicated"].append(message)
                if number <= highest[queue, publisher]:
                    verdicts["reordered"].append(message)
                highest[queue, publisher] = max(number, highest[queue, publisher])
            elif number < highest_in_session[queue, publisher, session]:
                verdicts["late"].append(message)
            line = (queue, publisher, session)
            highest_in_session[line] = max(number, highest_in_session[line])
            delivered.add(message)
            if born.get(message, incarnation) < incarnation:
                survived.add(message)
    verdicts["lost"] = sorted(confirmed - acked)
    last = defaultdict(int)
    for queue, publisher, number in delivered:
        last[queue, publisher] = max(number, last[queue, publisher])
    for message in published:
        queue, publisher, number = message
        if message not in delivered and number < last[queue, publisher]:
            verdicts["holes"].append(message)
    for group, members in groups.items():
        # What was delivered only before a crash may have been lost in it as a whole.
        if members & survived and members - delivered:
            verdicts["torn_groups"].append(group)
    counts = {
        "published": len(published),
        "confirmed": len(confirmed),
        "delivered": len(delivered),
        "recovered": len(delivered - confirmed),
        "redelivered": sum(1 for event in history if event[0] == "del" and event[3]),
    }
    return verdicts, counts


def self_test():
    """Each verdict is found in a history made for it, and none in a good one."""
    a, b, c = ("q", "p", 1), ("q", "p", 2), ("q", "p", 3)

    def published(*messages):
        return [("pub", message, None) for message in messages] + [("ok", message) for message in messages]

    def seen(*messages, session=1, redelivered=False):
        return [e for m in messages for e in (("del", m, session, redelivered), ("ack", m), ("settled", m))]

    good = published(a, b) + seen(a, b)
    again = published(a, b) + [("del", a, 1, False), ("del", b, 1, False)] + seen(a, b, session=2, redelivered=True)
    cases = {
        None: [good, again, [("pub", a, None)], [("left", "q", 0)], [("pub", a, 7), ("pub", ("r", "p", 1), 7)] + seen(a)],
        "lost": [published(a), published(a) + [("del", a, 1, False)]],
        "unexpected": [[("bad", "damage")], seen(a)],
        "duplicated": [published(a) + [("del", a, 1, False)] + seen(a, session=2)],
        "resurrected": [good + [("del", a, 2, True)]],
        "reordered": [published(a, b) + seen(b, a)],
        "late": [published(a, b) + seen(b) + seen(a, redelivered=True)],
        "holes": [published(a) + [("pub", b, None)] + published(c) + seen(a, c)],
        "torn_groups": [[("pub", a, 7), ("pub", ("r", "p", 1), 7), ("up", 1)] + seen(a)],
        "left": [good + [("left", "q", 1)]],
    }
    assert set(cases) - {None} == set(FATAL)
    for expected, histories in cases.items():
        for history in histories:
            verdicts, _ = check(history)
            found = {name for name, offenders in verdicts.items() if offenders}
            assert (expected in found) if expected else not found, (expected, found, history)
