"""Writes codetask_lengths.json: how long CodeTask-CL's sources and targets are, so that a machine without them can draw
batches of the same lengths (gpu.py).

  python benchmarks/codetask_lengths.py --data_dir=DIR --vocabulary=DIR    # CodeT5's tokenizer files

Quantiles 0, 1/16 ... 1 of the tokens in the training splits, cut as in training, and the correlation of the two ranks.
"""

import json

import codetask
import contest
import numpy as np
import steps


def main() -> None:
    options = contest.Parser(__doc__)
    options.add_argument("--data_dir", type=contest.folder, default="../shared/data/codetask_cl")
    options.add_argument("--vocabulary", type=contest.folder, default="../shared/data/tokenizers/codet5")
    arguments = options.parse_args()
    facts = {}
    for task, records in codetask.records(arguments.data_dir, arguments.vocabulary, "train").items():
        lengths_2N = np.asarray([[len(record[side]) for record in records] for side in ("inputs", "targets")])
        quantiles = np.quantile(lengths_2N, np.linspace(0, 1, 17), axis=1).T.round().astype(int).tolist()
        ranks_2N = lengths_2N.argsort(axis=1).argsort(axis=1)
        correlation = round(float(np.corrcoef(ranks_2N)[0, 1]), 2)
        row = {"sources": quantiles[0], "targets": quantiles[1], "correlation": correlation, "records": len(records)}
        facts[task] = row
    rows = ",\n  ".join(f"{json.dumps(task)}: {json.dumps(row)}" for task, row in facts.items())
    steps.LENGTHS.write_text(f'{{"vocabulary": "CodeT5", "tasks": {{\n  {rows}\n}}}}\n')


if __name__ == "__main__":
    main()
