"""Results as tables, which show themselves. Called by `__main__`; measures nothing."""

from collections.abc import Iterable, Iterator, Sequence

from bench.gemm import Alternation, Gemm
from bench.kernels import KernelTime
from bench.machine import Limits
from bench.model import ModelRun
from bench.peers import PeerRun
from deepzig.cli.tables import Table


def limits_table(section: str, before: Limits, after: Limits) -> Table:
    """What the machine could do, before and after a section."""
    rows = [
        [
            when,
            f"{x.read:.1f}",
            f"{x.read_one_thread:.1f}",
            f"{x.sgemm:.0f}",
            f"{x.fp32:.0f}",
            f"{x.bf16:.0f}" if x.bf16 else "",
            f"{x.load_average:.1f}",
        ]
        for when, x in (("before", before), ("after", after))
    ]
    head = ["measured", "read GB/s", "one thread", "sgemm GFLOPS", "fp32 peak", "bf16 peak", "load average"]
    return Table(f"Bounds, around {section}", head, rows)


def gemm_table(gemms: Iterable[Gemm]) -> Table:
    """Sizes by ways."""
    gemms = list(gemms)
    ways = list(dict.fromkeys(g.way for g in gemms))
    picked = {g.way for g in gemms if g.is_picked}
    gflops = {(g.size, g.way): g.gflops for g in gemms}
    sizes = sorted({g.size for g in gemms})
    rows = [[f"{size} x {size}", *(f"{gflops[size, way]:.0f}" for way in ways)] for size in sizes]
    head = ["fp32", *(f"{way}{' (picked)' if way in picked else ''}" for way in ways)]
    return Table("fp32 product, GFLOPS", head, rows)


def alternation_table(a: Alternation) -> Table:
    """Pairs beside the sum of their halves."""
    alone = a.product_s + a.kernel_s
    rows = [
        ["NumPy product, alone", f"{a.product_s * 1e6:.0f}", ""],
        ["kernel, alone", f"{a.kernel_s * 1e6:.0f}", ""],
        ["in turn", f"{a.pair_s * 1e6:.0f}", f"{a.pair_s / alone:.2f}"],
        ["in turn, pool parked", f"{a.parked_pair_s * 1e6:.0f}", f"{a.parked_pair_s / alone:.2f}"],
        ["empty region of the pool", f"{a.region_s * 1e6:.2f}", ""],
    ]
    return Table("BLAS threads and kernel threads in turn", ["", "us", "of the sum"], rows)


def kernel_table(times: Iterable[KernelTime], limits: Limits) -> Table:
    """A line for each case; shares of bandwidth where operands come from memory."""
    rows = [
        [
            f"{t.stem}: {t.name}",
            t.implementation,
            f"{t.seconds * 1e6:.1f}",
            f"{t.gb_s:.1f}",
            f"{t.gb_s / limits.read:.2f}" if t.is_cold else "",
            f"{t.gflops:.1f}",
            f"{t.gflops / t.peak(limits):.2f}",
            f"{t.share_of_bound(limits):.2f}" if t.is_cold or t.is_arithmetic(limits) else "",
        ]
        for t in times
    ]
    head = ["kernel", "runs", "us", "GB/s", "of read", "GFLOPS", "of peak", "of bound"]
    return Table("Kernels against their bounds", head, rows)


def decode_table(runs: Iterable[ModelRun]) -> Table:
    """Batch 1: rate, bytes and share of the bandwidth at each context."""
    rows = [
        [
            f"{run.result.model}",
            str(d.context),
            f"{d.tokens_per_s:.1f}",
            f"{d.bytes_per_token / 1e6:.0f}",
            f"{d.gb_s:.1f}",
            f"{d.gb_s / run.result.limits.read:.2f}",
            f"{d.tokens_per_s / run.result.decoding[0].tokens_per_s:.2f}",
            f"{run.result.stream_tokens_per_s:.1f}",
            f"{run.result.anonymous_mb:.0f}",
        ]
        for run in runs
        for d in run.result.decoding
    ]
    head = [
        "model", "context", "tok/s", "MB a token", "GB/s", "of read", "of first", "stream tok/s", "anon. MB"
    ]  # fmt: skip
    return Table("Decoding, batch 1", head, rows)


def prefill_table(runs: Iterable[ModelRun]) -> Table:
    """Prompts: rate, and arithmetic beside NumPy's product and the peaks."""
    rows = [
        [
            run.result.model,
            run.variant,
            str(p.tokens),
            f"{p.tokens_per_s:.1f}",
            f"{p.gflops:.0f}",
            f"{p.gflops / run.result.limits.sgemm:.2f}",
            f"{p.gflops / run.result.limits.fp32:.2f}",
            f"{p.gflops / run.result.limits.bf16:.2f}" if run.result.limits.bf16 else "",
        ]
        for run in runs
        for p in run.result.prefill
    ]
    head = ["model", "how", "tokens", "tok/s", "GFLOPS", "of sgemm", "of fp32 peak", "of bf16 peak"]
    return Table("Reading prompts", head, rows)


def peer_table(runs: Iterable[PeerRun]) -> Table:
    """deepzig's rate over the peer's, on the same weights in the same run."""
    rows: list[Sequence[str]] = []
    for run in runs:
        if run.problem:
            rows.append([run.peer, run.problem, *[""] * 5])
            continue
        rows.append(
            [
                run.peer,
                f"{run.peer_prefill:.1f}",
                f"{run.exact_prefill / run.peer_prefill:.2f}",
                f"{run.fast_prefill / run.peer_prefill:.2f}",
                f"{run.peer_decode:.1f}",
                f"{run.exact_decode:.1f}",
                f"{run.exact_decode / run.peer_decode:.2f}",
            ]
        )
    head = ["peer", "prefill tok/s", "deepzig exact, x", "deepzig fast, x", "decode tok/s", "deepzig tok/s", "x"]
    return Table("Peers, same weights, same threads", head, rows)


def for_readme(machine: dict[str, object], tables: Iterable[Table]) -> Iterator[str]:
    """Lines of a Markdown block: machine, kernels picked and date, then the tables."""
    kernels = machine["kernels"]
    assert isinstance(kernels, dict)
    picked: dict[str, list[str]] = {}
    for stem, label in kernels.items():
        picked.setdefault(label, []).append(stem)
    shown = "; ".join(f"{label}: {', '.join(stems)}" for label, stems in picked.items())
    yield f"Measured {machine['date']} with `python -m bench`: {machine['cpu']}, {machine['threads']} threads."
    yield f"Kernels picked: {shown}."
    for table in tables:
        yield ""
        yield table.markdown()

