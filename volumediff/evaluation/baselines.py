"""Is any method better than the baselines beyond doubt? One sentence for each baseline."""

from collections.abc import Sequence

import numpy as np

from volumediff.evaluation.localization import REFERENCES, MethodResult

__all__ = ["against_baselines"]

KEY = ("voxel_ap",)


def against_baselines(results: Sequence[MethodResult]) -> list[str]:
    """Which methods have a higher voxel AP than each baseline, by the 95 % interval of the paired
    difference; a sentence in its place where there is no baseline.
    """
    names = [r.method for r in results]
    methods = [r for r in results if r.method not in REFERENCES]
    baselines = [name for name in REFERENCES if name in names]
    if not methods:
        return []
    if not baselines:
        return [
            f"None of the baselines ({', '.join(REFERENCES)}) was evaluated: whether "
            f"{_all(methods)} better than one is not known."
        ]
    return [_against(baseline, methods) for baseline in baselines]


def _against(baseline: str, methods: Sequence[MethodResult]) -> str:
    found = {r.method: r.differences.get(baseline, {}).get(KEY) for r in methods}
    known = {name: d for name, d in found.items() if d is not None and np.isfinite(d.low)}
    if not known:
        return (
            f"There are too few patients with lesions to say whether {_all(methods)} better than "
            f"the baseline {baseline}."
        )
    better = [
        f"{name} ({d.value:+.3f}, {d.low:+.3f} to {d.high:+.3f})"
        for name, d in known.items()
        if d.low > 0
    ]
    worse = [name for name, d in known.items() if d.high < 0]
    text = f"Better than the baseline {baseline} in voxel AP beyond doubt: {', '.join(better)}."
    if not better:
        text = f"No method is better than the baseline {baseline} in voxel AP beyond doubt."
    return f"{text} Worse than it: {', '.join(worse)}." if worse else text


def _all(methods: Sequence[MethodResult]) -> str:
    return f"{methods[0].method} is" if len(methods) == 1 else "the methods are"
