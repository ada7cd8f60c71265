"""KV slots: pages, shared prefixes, eviction. Blocks are (identity, tokens)."""

from sglang_flowprefill.sim.kv_pool import KvPool

DOCUMENT = [(1, 100), (2, 100)]


def test_slots_are_handed_out_in_pages():
    """One token takes a page."""
    pool = KvPool(64, page_tokens=16)
    pool.take("a", 17)
    assert pool.num_used == 32
    assert pool.num_missing(33) == 16


def test_a_computed_prefix_is_cached_after_its_request_and_shared_by_others():
    """Two that use it hold it once."""
    pool = KvPool(1000)
    pool.take("a", 250)
    pool.keep("a", DOCUMENT)
    assert pool.num_used == 250
    pool.give_back("a")
    assert pool.num_used == 0
    assert pool.lock("b", DOCUMENT) == pool.lock("c", DOCUMENT) == 200
    assert pool.num_used == 200
    pool.give_back("b")
    assert pool.num_used == 200
    pool.give_back("c")
    assert pool.num_used == 0


def test_the_least_recently_used_block_gives_way_and_a_used_one_never():
    """Whoever needs slots gets those of the oldest prefix that nobody uses."""
    pool = KvPool(300)
    for name, block in (("a", (1, 100)), ("b", (2, 100))):
        pool.take(name, 100)
        pool.keep(name, [block])
    pool.give_back("a")
    pool.give_back("b")
    assert pool.lock("a", [(1, 100)]) == 100
    pool.take("big", 150)
    assert pool.num_cached([(1, 100)]) == 100
    assert pool.num_cached([(2, 100)]) == 0
    assert pool.num_evicted == 100
    assert pool.num_missing(51) == 1


def test_only_a_head_counts_as_cached():
    """A block is of use only after all blocks before it."""
    pool = KvPool(None)
    pool.take("a", 100)
    pool.keep("a", [(2, 100)])
    assert pool.num_cached(DOCUMENT) == 0
