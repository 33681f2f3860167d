#!/usr/bin/env bash
# How many frames a model gets from lmms-eval 0.7.3 depends on more than the number asked for. Of the same clip of 20 frames:
#   * read_video(path, num_frm=8) returns 8 frames if it is an .mp4, but all 20 if it is an .mkv, or if "mkv" or "webm" stands
#     anywhere in the path of the .mp4, such as in a folder's name;
#   * with fps as well, a clip shorter than 1 / fps seconds gives all 20 frames too, where one a little longer gives 1;
#   * load_video_decord(path, 32) returns 32 frames, 12 of which are the frame before them once more.
# So a video may exceed a model's context for its name alone, and tokens that repeat, whose loss costs no answers, are partly the
# reader's own.
#
# Around it: count what comes back; mp4 files below a folder of another name; no more frames than the clip has.
#
# Needs Python with pip. Everything is installed into a folder of its own (av, numpy, decord, loguru, and lmms-eval without its
# other dependencies, which these functions don't use). No GPU, no model and no data set is needed.
#     PYTHON=python3 bash findings/lmms_eval_frames.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
python="$scratch/venv/bin/python"
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install av==18.1.0 decord==0.6.0 loguru==0.7.3 numpy==2.4.6 2>/dev/null
pip install --no-deps lmms-eval==0.7.3 2>/dev/null

cat >"$scratch/program.py" <<'PY'
import pathlib, sys
from importlib.metadata import version
import av, numpy as np
from lmms_eval.models.model_utils.load_video import load_video_decord, read_video

folder, frames = pathlib.Path(sys.argv[1]), 20
good = True

def film(name):
    """20 different frames in 2.5 seconds, compressed without loss."""
    path, random = folder / name, np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.options = "yuv420p", {"qp": "0"}
        for picture in random.integers(0, 256, (frames, 8, 8, 3)):
            picture = picture.repeat(8, 0).repeat(8, 1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return str(path)

def say(what, got, expected):
    global good
    same = int((got[1:] == got[:-1]).all((1, 2, 3)).sum())
    good &= (len(got), same) == expected
    print(f"{what}: {len(got)} frames, {same} the same as the one before")

print(f"lmms-eval {version('lmms-eval')}, av {version('av')}, decord {version('decord')}")
say("clips/a.mp4, num_frm=8", read_video(film("clips/a.mp4"), num_frm=8), (8, 0))
say("clips/a.mkv, num_frm=8", read_video(film("clips/a.mkv"), num_frm=8), (20, 0))
say("from_webm/a.mp4, num_frm=8", read_video(film("from_webm/a.mp4"), num_frm=8), (20, 0))
clip = str(folder / "clips/a.mp4")
say("clips/a.mp4, num_frm=8, fps=0.5", read_video(clip, num_frm=8, fps=0.5), (1, 0))
say("clips/a.mp4, num_frm=8, fps=0.3", read_video(clip, num_frm=8, fps=0.3), (20, 0))
say("clips/a.mp4, num_frm=32", read_video(clip, num_frm=32), (20, 0))
say("clips/a.mp4, load_video_decord, 32", load_video_decord(clip, 32), (32, 12))
sys.exit(not good)
PY
"$python" "$scratch/program.py" "$scratch" && echo "as described" || { echo "not as described any more"; exit 1; }
# Seen (Python 3.11):
#
#     lmms-eval 0.7.3, av 18.1.0, decord 0.6.0
#     clips/a.mp4, num_frm=8: 8 frames, 0 the same as the one before
#     clips/a.mkv, num_frm=8: 20 frames, 0 the same as the one before
#     from_webm/a.mp4, num_frm=8: 20 frames, 0 the same as the one before
#     clips/a.mp4, num_frm=8, fps=0.5: 1 frames, 0 the same as the one before
#     clips/a.mp4, num_frm=8, fps=0.3: 20 frames, 0 the same as the one before
#     clips/a.mp4, num_frm=32: 20 frames, 0 the same as the one before
#     clips/a.mp4, load_video_decord, 32: 32 frames, 12 the same as the one before
#     as described
