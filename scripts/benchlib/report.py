"""The figures as a table to read."""

from .rows import ROWS


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def cell(spread):
    if spread is None:
        return "–"
    if len(spread["values"]) == 1:
        return number(spread["median"])
    return f"{number(spread['median'])} ({number(spread['min'])}–{number(spread['max'])})"


def ratio(row, per, other):
    """How many times as good axiomfs is as another contender: above 1 is better, whichever way the row counts."""
    ours, theirs = per.get("axiomfs"), per.get(other)
    if not ours or not theirs or not ours["median"] or not theirs["median"]:
        return "–"
    value = ours["median"] / theirs["median"]
    return f"{value if ROWS[row][2] else 1 / value:.2f}"


def verdict(row, per, whole):
    """What must be reached, and whether it is. Only the whole data can tell."""
    target, ours = ROWS[row][3], per.get("axiomfs")
    if target is None:
        return "–"
    sign = "≥" if ROWS[row][2] else "≤"
    if not ours or not whole:
        return f"{sign} {number(target)}"
    reached = ours["median"] >= target if ROWS[row][2] else ours["median"] <= target
    return f"{sign} {number(target)} {'yes' if reached else 'NO'}"


def table(result, names):
    """Everything as text: a table for each way in which idle CPUs wait, requests to the store, the machine, what failed."""
    machine, text = result["machine"], []
    for way, figures in result["figures"].items():
        text += [f"Idle CPUs: {WAYS[way].format(machine['guest_halt_poll_ns'])}", "", *rows_of(figures, names, machine["data"]["whole"]), ""]
        text += requests_of(result["requests"][way])
    return "\n".join([*text, *about(result), *failures(result)])


WAYS = {"default": "as the machine has it (guest_halt_poll_ns {})", "sleep": "they sleep at once (guest_halt_poll_ns 0)",
        "poll": "they poll (guest_halt_poll_ns 200000), as hosts outside micro-VMs do"}


def rows_of(figures, names, whole):
    others = [name for name in names if name != "axiomfs"]
    head = ["work", "unit", *names, *(f"× {name}" for name in others), "must"] if "axiomfs" in names else ["work", "unit", *names]
    lines = [head]
    for row, (what, unit, _, _) in ROWS.items():
        if row not in figures:
            continue
        per = figures[row]
        line = [what, unit, *(cell(per.get(name)) for name in names)]
        if "axiomfs" in names:
            line += [*(ratio(row, per, name) for name in others), verdict(row, per, whole)]
        lines.append(line)
    return aligned(lines)


def aligned(lines):
    """A table of Markdown that is one for the eye too. The first line is its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["| " + " | ".join(word.ljust(width) for word, width in zip(line, widths)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return text


def requests_of(requests):
    """What each session asked of the store, and the CPU time of its server where it has one."""
    lines = [["requests of a session", "contender", "by kind", "CPU of the server, s"]]
    for session, runs in requests.items():
        for one in runs:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(one["requests"].items()))
            cpu = "–" if one["server_cpu_s"] is None else number(one["server_cpu_s"])
            lines.append([session, one["contender"], kinds, cpu])
    return [*aligned(lines), ""] if len(lines) > 1 else []


def about(result):
    machine = result["machine"]
    return [
        f"{result['date']}, commit {machine['commit']}, {machine['runs']} run(s): median (least–most). "
        "× NAME: how many times as good axiomfs is as NAME; above 1 is better in every row.",
        f"{machine['cpus']} × {machine['cpu']}, {machine['memory_bytes'] >> 30} GiB, Linux {machine['kernel']}, {machine['filesystem']}",
        f"Data: tree of {machine['data']['files']:,} files, {machine['data']['tree_bytes'] >> 20} MiB; mixed.bin of {machine['data']['mixed_bytes'] >> 20} MiB; "
        f"recipe {machine['data']['recipe']}",
        "Versions: " + "; ".join(f"{name}: {version}" for name, version in machine["versions"].items()),
    ]


def failures(result):
    return [f"FAILED: {one['contender']}, run {one['run']}, idle {one['idle']}, {one['session']}: {one['error']}" for one in result["failures"]]
