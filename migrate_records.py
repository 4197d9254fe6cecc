"""Migrate results/*/*.json from schema 1 to schema 2, once. Usage: migrate_records.py RESULTS_FOLDER

Every old checksum is verified first; no number changes; the migrated record keeps the old checksum
as `migrated_from`.
"""

import json
import sys
from pathlib import Path

from prunegpt_utils.runs import expansion, parameters, records, schema

KEYS = {
    "gain": "nll_gain_over_baseline", "behind": "nll_gap_to_teacher", "curve": "one_shot_curve",
    "removed": "removed_share", "matrices": "sparsity_by_matrix", "gaps": "nll_gaps",
    "held": "memory_share",
}
ROWS = {
    "seconds_by_share": {"gone": "removed_share", "rival": "seconds_other", "dense": "seconds_dense"},
    "seconds_on_gpu": {"gone": "removed_share", "rival": "seconds_other", "dense": "seconds_dense"},
    "seconds_of_products": {"dense": "seconds_dense", "sparse": "seconds_sparse"},
}
KD = {"forward": "forward_kl", "reverse": "reverse_kl", "hidden": "hidden_mse"}


def rename(mapping, names):
    found = {names.get(key, key): value for key, value in mapping.items()}
    assert len(found) == len(mapping)
    return found


def migrate(old, planned):
    assert old["checksum"] == records.checksum(old), "its checksum does not fit"
    spec = planned[old["run"]]
    p = dict(old["parameters"])
    if "divergence" in p:
        p["divergence"] = KD[p["divergence"]]
    p = rename(p, parameters.RENAMED)
    assert expansion.run_name(p) == old["run"] and p["recipe"] == old["recipe"]
    for name, value in spec.parameters.items():
        assert p[name] == value, (old["run"], name, p[name], value)
    for name, value in spec.axes.items():
        assert p[name] == value
    new = rename({k: v for k, v in old.items() if k != "checksum"}, KEYS)
    new["parameters"] = p
    new["protocol"] = rename(old["protocol"], {"block": "block_size"})
    for part, names in ROWS.items():
        if part in new:
            new[part] = [rename(row, names) for row in new[part]]
    return new | {
        "schema": schema.SCHEMA, "base_recipe": spec.base_recipe, "axes": spec.axes,
        "migrated_from": old["checksum"],
    }


def main(folder):
    todo = []
    for study in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        planned = expansion.plan(study.name)
        files = sorted(study.glob("*.json"))
        assert {file.stem for file in files} == set(planned), study
        todo += [(file, migrate(json.loads(file.read_text("utf-8")), planned)) for file in files]
    for file, new in todo:  # only once all of them are sound
        wrong = list(schema.problems(new | {"checksum": records.checksum(new)}))
        assert not wrong, (file, wrong)
    for file, new in todo:
        records.put(file, new)
    print(f"{len(todo)} records migrated")


if __name__ == "__main__":
    main(sys.argv[1])
