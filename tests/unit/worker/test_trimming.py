"""What a throw-away journal may forget, and when it is worth it."""

from batchd.client.trimming import Trimming

MIB = 1 << 20


def test_large_inputs_are_forgotten_though_their_results_are_small() -> None:
    trimming = Trimming()
    told = []
    for job in range(100):
        trimming.sent(1, MIB)
        trimming.add(job, job + 1, 5)
        told += trimming.due()
    assert told == [(0, 32), (0, 64), (0, 96)]


def test_every_byte_of_input_counts_once() -> None:
    trimming = Trimming()
    trimming.sent(30, 33 * MIB)
    trimming.add(0, 15, 0)
    assert trimming.due() == []
    trimming.add(15, 30, 0)
    assert trimming.due() == [(0, 30)]
    trimming.add(30, 31, 0)
    assert trimming.due() == []
