#!/usr/bin/env bash
# Make the weights that animate.py uses, from nothing: data, motion VAE, U-Net in its stages, both renderers, tables, card.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: bash checkpoints/make_default.sh [flags]

  --clips CSV        videos to learn from beside rendered scenes (columns path or file, split, source, licence)
  --rendered-only    learn from rendered scenes alone; --clips are then only measured on
  --backbone FILE    SqueezeNet 1.1's ImageNet features, for the image encoder and the renderers' loss
  --backbone-licence TEXT   where those come from and on what terms, for the card
  --photos DIR --masks DIR --photo-table CSV   photographs with masks of what can move, for the placement head
                     (train_unet.py --help)
  --still-pictures DIR   photographs in which nothing moves, for the same
  --minutes M        train for about so long: of 25, 2 the VAE, 12 the U-Net, 5 the renderers; data and tables come on
                     top. Without: fixed numbers of steps, 4 to 5 h on two CPU cores
  --slice M          stop after so long with checkpoints, exit code 3; a table is finished first
  --scenes N         rendered scenes (1000), and a fifth as many static ones
  --workers N        processes that prepare data, and with a GPU at most 8 that load it (all cores)
  --device D         auto, cpu, cuda:N
  --precision P      bf16 (default), no, fp16
  --seed N           of all trainings (0)
  --work DIR         sets, runs and tables (outputs/make_default, with --rendered-only outputs/make_rendered)
  --out DIR          copy the finished checkpoint there from WORK/checkpoint; one that is there is replaced
  --tiny             a few steps on a few scenes, to see that everything runs
  --dry-run          print the commands

Without --clips and --backbone no photograph is used.
Exit codes: 0 done, 2 a mistake, 3 --slice is over, 130 interrupted; the same command goes on after 3 and 130.
TEXT
}

fail() {
    echo "make_default.sh: $*" >&2
    exit 2
}

# Flags
clips= rendered= backbone= backbone_licence= photos= masks= photo_table= still_pictures= minutes= slice= scenes=1000 workers= device=auto precision=bf16 seed=0
work= out= tiny= dry=
while (($#)); do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --tiny) tiny=yes && shift && continue ;;
        --dry-run) dry=yes && shift && continue ;;
        --rendered-only) rendered=yes && shift && continue ;;
        --clips | --backbone | --backbone-licence | --photos | --masks | --photo-table | --still-pictures | --minutes | --slice | --scenes | --workers | --device | --precision | --seed | --work | --out)
            (($# > 1)) || fail "$1: needs a value; --help lists the flags" ;;
        *) fail "$1: not a flag of this script; --help lists them" ;;
    esac
    name=${1#--}
    declare "${name//-/_}=$2"
    shift 2
done
for name in minutes slice scenes workers seed; do
    [[ -z ${!name} || ${!name} =~ ^[0-9]+$ ]] || fail "--$name ${!name}: right: a whole number"
    [[ ${!name} != 0 || $name == seed ]] || fail "--$name 0: right: a whole number above 0"
done
for name in clips backbone photo_table; do
    [[ -z ${!name} || -f ${!name} ]] || fail "--${name//_/-} ${!name}: no such file"
done
for name in photos masks still_pictures; do
    [[ -z ${!name} || -d ${!name} ]] || fail "--${name//_/-} ${!name}: no such folder"
done
[[ ${photos:+yes} == ${masks:+yes} && (-n $photos || -z $photo_table) ]] || fail "--photos, --masks: one without the other, or --photo-table without them"
[[ -z $rendered || -z $photos$still_pictures ]] || fail "--rendered-only: learns from no photograph; leave --photos and --still-pictures out"
for name in clips backbone photos masks photo_table still_pictures; do [[ -z ${!name} ]] || declare "$name=$(realpath "${!name}")"; done
work=${work:-outputs/make_$([[ -n $rendered ]] && echo rendered || echo default)}
work=$(realpath -m "$work") out=${out:+$(realpath -m "$out")} checkpoint=$work/checkpoint
cd "$(dirname "$0")/.."
workers=${workers:-$(python -c 'from data.cpus import available_cpus; print(available_cpus())')}
if [[ -n $out && -n $(ls -A "$out" 2>/dev/null) && ! -f $out/model_index.json ]]; then
    fail "--out $out: holds something that is no checkpoint; name another folder"
fi

# Each finished part leaves a file in WORK/done, so that the next call goes on after it.
deadline=${slice:+$((SECONDS + 60 * slice))}

later() {
    echo "make_default.sh: --slice $slice is over and $1 is not done yet; the same command goes on" >&2
    exit 3
}

# Commands run in the background, because bash delays signals while one runs in the foreground.
child=
interrupted() {
    trap '' INT TERM HUP
    [[ -z $child ]] || { kill "$child" && wait "$child"; } 2>/dev/null || true
    echo "make_default.sh: interrupted; the same command goes on" >&2
    exit 130
}
trap interrupted INT TERM HUP

# run COMMAND...: print and run it, for at most $limit seconds where that is set; 124 when they are over
run() {
    local code=0
    echo "+ python $*"
    [[ -z $dry ]] || return 0
    command -v timeout >/dev/null || limit=
    ${limit:+timeout "$limit"} python "$@" &
    child=$!
    wait "$child" || code=$?
    child=
    return "$code"
}

# is_due PART: it is not done yet; exits where --slice is over
is_due() {
    [[ ! -e $work/done/$1 ]] || return 1
    [[ -z $deadline || -n $dry ]] || ((SECONDS < deadline)) || later "$1"
}

# once PART COMMAND...: a part that is not a training; a table that cannot be made, as without test clips, is left out
once() {
    local part=$1 code=0 limit=
    is_due "$part" || return 0
    [[ -z $deadline || $part == evaluate_* ]] || limit=$((deadline - SECONDS + 1))
    run "${@:2}" || code=$?
    case $part:$code in
        *:0) ;;
        clips:3 | evaluate_*:3) echo "make_default.sh: $part: some inputs were left out, as said above" >&2 ;;
        *:124) later "$part" ;;
        evaluate_*:*) echo "make_default.sh: $part: no table, as said above" >&2 && return 0 ;;
        *) exit "$code" ;;
    esac
    [[ -n $dry ]] || touch "$work/done/$part"
}

# A training that was cut short is exported too; its record says whether it is finished.
is_finished() {
    python - "$1" "$checkpoint" <<'TEXT'
import json, pathlib, sys
run, out = map(pathlib.Path, sys.argv[1:])
records = [json.loads(path.read_text()) for path in [*run.glob("**/training.json"), *out.glob("training.json")]]
sys.exit(not any(record["finished"] for parts in records for record in parts.values() if record["flags"]["out"] == str(run)))
TEXT
}

# learn PART SHARE STEPS SCRIPT FLAGS...: a training of SHARE / 250 of --minutes, or of STEPS steps
learn() {
    local part=$1 share=$2 steps=$3 left=() limit= code=0
    is_due "$part" || return 0
    if [[ -n $deadline ]]; then
        left=(--minutes "$(awk "BEGIN { print ($deadline - $SECONDS) / 60 + 0.01 }")")
        limit=$((deadline - SECONDS + 60)) # encoding, before the first step, knows no --minutes
    fi
    [[ -z $minutes ]] || left+=(--finish-in "$(awk "BEGIN { print $minutes * $share / 250 }")")
    run "${@:4}" --steps "$steps" --device "$device" --precision "$precision" --seed "$seed" --out "$work/runs/$part" \
        --workers "$loaders" --save-every 200 --resume auto "${left[@]}" || code=$?
    ((code != 124)) || later "$part"
    ((code == 0)) || exit "$code"
    [[ -z $dry ]] || return 0
    is_finished "$work/runs/$part" || later "$part"
    touch "$work/done/$part"
}

# Sizes: a GPU takes larger batches, and as many steps as fit into --minutes where more of them do not harm.
batch=8 crop=96 renderer=fast loaders=0 size=() grid=() vae_crop=128x128
vae_steps=150 picture_steps=900 denoiser_steps=5200 displacement_steps=1200 renderer_steps=1500
if [[ $device != cpu ]] && python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    batch=32 crop=128 loaders=$((workers < 8 ? workers : 8))
fi
[[ -z $minutes ]] || vae_steps=100000 denoiser_steps=1000000 renderer_steps=1000000
if [[ -n $tiny ]]; then
    scenes=6 batch=2 crop=32 renderer=tiny size=(--size 96x64) grid=(--bins 4 --grid 96x64) vae_crop=64x64
    vae_steps=2 picture_steps=2 denoiser_steps=2 displacement_steps=2 renderer_steps=2
fi

# Settings that may not change under way
settings="clips ${clips:-none}, rendered only ${rendered:-no}, backbone ${backbone:-none}, minutes ${minutes:-free}, scenes $scenes"
settings+=", photographs ${photos:-none} ${masks:-} ${photo_table:-}, still pictures ${still_pictures:-none}, precision $precision, seed $seed, batch $batch, tiny ${tiny:-no}"
if [[ -f $work/settings ]]; then
    begun=$(<"$work/settings")
    [[ $begun == "$settings" ]] || fail "--work $work: was begun with $begun; this is $settings; name another folder"
fi
if [[ -z $dry ]]; then
    mkdir -p "$work/done" 2>/dev/null || fail "--work $work: cannot be written"
    exec 9>"$work/lock"
    ! command -v flock >/dev/null || flock -n 9 || fail "--work $work: another call is at work there"
    echo "$settings" >"$work/settings"
fi
features=(${backbone:+--backbone-weights "$backbone"})
masked=(${photos:+--photos "$photos" --masks "$masks"} ${photo_table:+--photo-table "$photo_table"})

# Data
data=("$work/sets/scenes:0.6") motion_data=("$work/sets/scenes:0.3") still_data=("$work/sets/scenes:0.1" "$work/sets/still:0.2")
once scenes prepare_data.py scenes --num "$scenes" "${size[@]}" --seed 2 --workers "$workers" --out "$work/sets/scenes"
once still prepare_data.py scenes --num $((scenes / 5 + 1)) "${size[@]}" --kinds still --seed 3 --workers "$workers" --out "$work/sets/still"
measured=$work/sets/scenes
if [[ -n $clips ]]; then
    once clips prepare_data.py videos "$clips" --fps 20 --workers "$workers" --out "$work/sets/real"
    measured=$work/sets/real
fi
if [[ -n $clips && -z $rendered ]]; then
    data+=("$work/sets/real:3") motion_data+=("$work/sets/real:4") still_data+=("$work/sets/real:4")
fi

# Motion
unet=(train_unet.py --vae "$work/runs/vae/vae" --cache "$work/latents" "${grid[@]}")
learn vae 20 $vae_steps train_vae.py --data "${data[@]}" "${grid[@]}" --preset tiny --batch-size 4 --slices 4 --crop $vae_crop \
    --learning-rate 2e-3 --warmup-steps 30 --ema-decay 0.99
learn picture 15 $picture_steps "${unet[@]}" --data "${data[@]}" --preset tiny --stage image-encoder "${features[@]}" \
    --batch-size 8 --learning-rate 2e-3 --warmup-steps 50 --ema-decay 0.99
learn displacement 25 $displacement_steps "${unet[@]}" --data "${still_data[@]}" --stage displacement \
    --init "$work/runs/picture/pipeline/unet" --batch-size 24 --learning-rate 2e-3 --warmup-steps 100 --weight-decay 0.05 \
    --ema-decay 0.98 --sample-every 0 "${masked[@]}" ${still_pictures:+--still-pictures "$still_pictures"}
learn denoiser 80 $denoiser_steps "${unet[@]}" --data "${motion_data[@]}" --stage denoiser \
    --init "$work/runs/displacement/pipeline/unet" --batch-size "$batch" --learning-rate 6e-4 --warmup-steps 50 \
    --ema-decay 0.995 --validate-every 1000 --sample-every 0 --export "$checkpoint"

# Rendering
for operator in softsplat gaussian; do
    name=frame_synthesis_${operator/softsplat/softmax}
    learn "$name" 25 $renderer_steps train_frame_synthesis_$operator.py --data "${data[@]/:0.6/:0.3}" --preset $renderer \
        --batch-size $((batch / 2)) --crop $crop --learning-rate 1.5e-3 --warmup-steps 50 --ema-decay 0.99 \
        ${backbone:+--perceptual-weights "$backbone"} --export "$checkpoint/$name"
done

# Tables and card
measure=(--device "$device" --seed "$seed" --checkpoint "$checkpoint")
few=(${tiny:+--clips 1}) quick=(${tiny:+--samples 1 --steps 2})
once evaluate_motion evaluate.py motion --data "$measured" --samples 2 "${few[@]}" "${measure[@]}" --out "$work/evaluate/motion"
once evaluate_frames evaluate.py frames --data "$measured" --every 30 "${few[@]}" "${measure[@]}" --out "$work/evaluate/frames"
held_out=(${photo_table:+"${masked[@]}" --split test})
once evaluate_placement evaluate.py placement --scenes $((scenes / 64 + 2)) "${held_out[@]}" "${quick[@]}" \
    "${measure[@]}" --out "$work/evaluate/placement"
once sources evaluate.py sources --data "${still_data[@]%:*}" ${clips:+--licences "$clips"} --out "$work/evaluate/sources"
[[ -z $dry ]] || exit 0
{
    printf '%s\n' "# Weights of make_default.sh" "" \
        "Motion VAE, U-Net, noise schedule and a renderer for each splatting operator; \`training.json\` has the command," \
        "flags, versions, steps, hours and losses of each. No frame of a clip is stored here." ""
    if [[ -n $backbone ]]; then
        echo "Image features (frozen) and the renderers' loss: ImageNet features of SqueezeNet 1.1, $(basename "$backbone");"
        echo "origin and licence: ${backbone_licence:-not stated}."
    else
        echo "Image features: learned here, from the sources below."
    fi
    echo "segmentation/, of checkpoints/default and not trained here: MOSAIC, MLCommons' mosaic_ade20k31_r4.tflite (MLCommons"
    echo "Association License, the text of Apache 2.0), trained on ADE20K, whose images are for research."
    [[ -z $photos ]] || echo "Masked photographs, for the placement head and, of split test, its table: $(ls "$masks" | wc -l)."
    [[ -z $still_pictures ]] || echo "Photographs in which nothing moves: $(ls "$still_pictures" | tr '\n' ' ')."
    for table in sources evaluate_motion evaluate_frames evaluate_placement; do
        file=$work/evaluate/${table#evaluate_}/results.md
        [[ ! -e $work/done/$table || ! -f $file ]] || { echo && cat "$file"; }
    done
} | sed "s|$work/||g" >"$checkpoint/README.md.part"
mv "$checkpoint/README.md.part" "$checkpoint/README.md"
if [[ -n $out && $out != "$checkpoint" ]]; then
    mkdir -p "$(dirname "$out")" && rm -rf "$out.part" && cp -R "$checkpoint" "$out.part"
    rm -rf "$out" && mv "$out.part" "$out"
fi
out=${out:-$checkpoint}
echo "done: $out ($(du -sh "$out" | cut -f1)); python animate.py photo.jpg --checkpoint $out"
