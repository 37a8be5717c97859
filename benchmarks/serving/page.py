"""The results as a page that one can read: pure, from the JSON alone."""

from __future__ import annotations

from benchmarks.page import machine_lines
from benchmarks.serving.figures import median
from benchmarks.serving.plan import DEADLINE_S
from benchmarks.serving.systems import IN_PROCESS, SYSTEMS
from benchmarks.serving.tables import Results, burst_tables, model_tables, number, peak_table, ratio_table
from benchmarks.table import markdown

TITLE = "Serving, beside other model servers"
# Others' share of a processor above which a measurement is called disturbed.
DISTURBED_CORES = 0.2


def page(results: Results) -> str:
    """The whole Markdown page."""
    sections = [
        f"# {TITLE}",
        f"Written by `{results['taken']['command']}`; a new run replaces it. The figures of every round are in "
        "`serving.json` beside this page.",
        "## What was measured",
        _method(results),
        _systems(results),
        _skipped(results),
        "## This agent, as ratios",
        _reading(),
        markdown(peak_table(results)),
        markdown(ratio_table(results)),
        "## What each system did",
        "CPU is the processor time of the server with all its processes for each answer. Peak memory is the sum of "
        "what each of its processes had resident at most, pages that they share counted in each.",
        *(f"### {table.title}\n\n{markdown(table)}" for table in model_tables(results)),
        *_bursts(results),
        "## What the figures do not say",
        _limits(results),
        "## Taken on",
        machine_lines(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _method(results: Results) -> str:
    settings = results["settings"]
    callers = ", ".join(str(count) for count in settings["callers"])
    return (
        f"For each model every server is started once; then they take turns, {settings['rounds']} rounds for each "
        f"number of callers ({callers}), {settings['seconds']:g} s each after {settings['warm_s']:g} s that are not "
        "counted, and another one comes first in each round. LitServe, which is never idle, is stopped (SIGSTOP) while "
        "others have theirs. One client process asks all of them: its callers send again as soon as they have their "
        "answer. It uses `tritonclient.grpc.aio`, and for LitServe, which has no "
        "gRPC, a few lines of HTTP. Before a system is measured its answers to 32 requests at once are compared with "
        f"ONNX Runtime's own; the largest difference was {_difference(results)} of an answer's largest number. "
        "Requests differ from each other and have one row each; their tensors are encoded once."
    )


def _difference(results: Results) -> str:
    worst = {"fp32": 0.0, "int8": 0.0}
    for found in results["differences"]:
        kind = "int8" if found["model"].endswith("int8") else "fp32"
        worst[kind] = max(worst[kind], found["difference"])
    return f"{worst['fp32']:.1e} (fp32) and {worst['int8']:.1e} (int8, whose scales depend on the batch)"


def _systems(results: Results) -> str:
    lines = []
    for name in results["settings"]["systems"]:
        if name in SYSTEMS:
            installed = ", ".join(f"{package} {at}" for package, at in results["versions"].get(name, {}).items())
            lines.append(f"- **{name}**: {SYSTEMS[name].about}" + (f" ({installed})" if installed else ""))
        elif name == IN_PROCESS:
            lines.append(
                f"- **{name}**: a floor: ONNX Runtime in its own process without requests, with one session of as many "
                "threads as cores or as many sessions of one thread, in batches of 1 to 32, whichever does most"
            )
    return "\n".join(lines)


def _skipped(results: Results) -> str:
    lines = [f"- **{one['system']}**, {one['model']}: {one['why']}" for one in results["skipped"]]
    return "**Not measured:**\n\n" + "\n".join(lines) if lines else ""


def _reading() -> str:
    return (
        "*Per s*: more is better. *p50* to *memory*: less is better. The best peer is named, and is looked for in each "
        "measure by itself. A ratio is the median over the rounds of each round's own. *CPU / floors* is to the sum of "
        "a request's processor time in-process at its best batch and in the echo; *p50 over floors* is what one "
        "caller waits beyond one run in-process and one echo."
    )


def _bursts(results: Results) -> list[str]:
    found = burst_tables(results)
    if not found:
        return []
    settings = results["settings"]
    how = (
        "Requests arrive at random (Poisson) at a multiple of the system's own peak in the closed loop, whether "
        f"earlier ones were answered or not; each is of no use after {DEADLINE_S * 1000:.0f} ms and carries that "
        f"deadline. {settings['open_s']:g} s are counted after 1 s, {settings['open_rounds']} rounds. *Half cancel*: "
        "half of the callers give up at a random time before. *In time* counts answers within the deadline; times are "
        "from when a request was due. *Refused* is gRPC's RESOURCE_EXHAUSTED (of Triton, UNAVAILABLE with its words "
        "for it), with how long that took. *Empty after* is how long after the last arrival a request that comes "
        "alone takes about its usual time again."
    )
    return ["## More than a server can answer", how, *(f"### {t.title}\n\n{markdown(t)}" for t in found)]


def _limits(results: Results) -> str:
    others = [cell["other_cores"] for cell in results["cells"]]
    disturbed = sum(cores > DISTURBED_CORES for cores in others)
    lines = (
        f"The client and the servers share this machine's {results['machine']['cores']} cores; on machines of their "
        "own all would answer more. The echo shows how much the transport and the client leave.",
        f"Other processes, idle servers among them, took {number(median(others) or 0)} cores in the median "
        f"measurement and {number(max(others, default=0))} at most; in {disturbed} of {len(others)} measurements it "
        f"was more than {DISTURBED_CORES:g}.",
        "Weights are random: what the networks cost is real, what they say is not.",
        "There is no GPU, no TLS and no real network.",
        "Times of tens of milliseconds give few calls in a round: with fewer than 100 its p99 is its slowest call.",
        "A peer's settings are named above; somebody who knows it better may find better ones.",
    )
    return "\n".join(f"- {line}" for line in lines)
