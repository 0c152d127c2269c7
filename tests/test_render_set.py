"""Sets of rendered scenes: resumed, extended, split by kind."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
from clip_sets import files_of

from data.clip_writer import ClipSetWriter
from data.clips import ClipSetError
from data.files import MediaError
from data.scenes.render_set import TEST_EVERY, _is_test_scene, render_scene_set, scene_settings


def test_a_rendered_set_resumes_extends_and_holds_exact_flow(tmp_path):
    whole = render_scene_set(tmp_path / "whole", 6, size=(48, 64), pairs=1)
    render_scene_set(tmp_path / "grown", 3, size=(48, 64), pairs=1)
    render_scene_set(tmp_path / "grown", 6, size=(48, 64), pairs=1)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "grown")
    assert [row.split for row in whole.rows()] == ["train"] * 5 + ["test"]
    from data.scenes.scene import make_scene

    row = whole.rows()[1]
    scene = make_scene(int(row.source.split(":")[1]), size=(48, 64))
    pairs, _ = whole.pairs(row.id)
    assert len(pairs) == 1 and bool((pairs[0].reliability == 1).all())
    torch.testing.assert_close(pairs[0].flow, scene.flow(pairs[0].time_s), atol=4e-3, rtol=1e-3)
    assert (whole.first(row.id) - scene.frame(0.0)).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ClipSetError, match="pairs was 1, is 0"):
        render_scene_set(tmp_path / "whole", 6, size=(48, 64), pairs=0)


@pytest.mark.parametrize("num_kinds", [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 22, 40])
def test_every_kind_is_in_both_splits_and_one_scene_in_20_is_a_test_scene(num_kinds):
    # as many scenes as give each kind one test scene, if they are shared out well
    chosen = [_is_test_scene(index, num_kinds) for index in range(TEST_EVERY * num_kinds)]
    tested = Counter(index % num_kinds for index, is_test in enumerate(chosen) if is_test)
    assert tested == {kind: 1 for kind in range(num_kinds)}
    # and wherever a set ends, its share is right
    assert all(round(n / 20) - 1 <= sum(chosen[:n]) <= n / 20 + 1 for n in range(len(chosen)))
    if math.gcd(num_kinds, TEST_EVERY) == 1:  # all kinds, drawn by seed, are one; these sets stay as they were
        assert [i for i, is_test in enumerate(chosen) if is_test] == list(range(5, len(chosen), 20))


def test_a_set_of_kinds_has_them_in_both_splits_and_does_not_go_on_with_one_of_before(tmp_path):
    options = {"seed": 0, "size": (32, 48), "pairs": 0}
    rows = render_scene_set(tmp_path / "set", 30, size=(32, 48), kinds=["still", "flag"], pairs=0).rows()
    assert {row.source.split(":")[2] for row in rows if row.split == "test"} == {"still", "flag"}
    statistics = json.loads((tmp_path / "set" / "statistics.json").read_text())
    del statistics["settings"]["test_scenes"]
    (tmp_path / "set" / "statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ClipSetError, match="test_scenes was none, is of each kind"):
        render_scene_set(tmp_path / "set", 32, size=(32, 48), kinds=["still", "flag"], pairs=0)
    for kinds in (None, ["still"], ["still", "flag", "tree"]):
        assert "test_scenes" not in scene_settings(kinds=kinds, **options)


def test_a_finished_rendered_set_is_opened_while_another_run_holds_it(tmp_path):
    made = render_scene_set(tmp_path / "set", 2, size=(32, 48), pairs=0)
    before = files_of(tmp_path / "set")
    with ClipSetWriter(tmp_path / "set", made.statistics["settings"]):
        again = render_scene_set(tmp_path / "set", 2, size=(32, 48), pairs=0)
        assert [row.id for row in again.rows()] == [row.id for row in made.rows()]
        with pytest.raises(MediaError, match="another run"):
            render_scene_set(tmp_path / "set", 3, size=(32, 48), pairs=0)
    assert files_of(tmp_path / "set") == before
