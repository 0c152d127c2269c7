# The tables of docs/results.md. Each is a results.md, .csv and .json in $(OUT)/NAME. $(OUT)/log.txt says how long it took.
#   make list                        print the commands
#   make tables DATA=sets/real ...   make the tables that are missing or older than their weights; -k goes on after errors
#   make tables TABLES="frames data" make some of them

PYTHON = python
OUT = outputs/tables
# Clip sets of prepare_data.py.
DATA = sets/real
SCENES = sets/scenes
# DATA made with --size 160x96, for the many trainings of the ablation.
SMALL_DATA = sets/real160
# The test videos that DATA was made of, and a table of their subjects.
CLIPS = clips
CLIP_TABLE = clips.csv
# Photographs, masks of what can move in them, and a table of their subjects and splits.
PHOTOS = photos
MASKS = masks
PHOTO_TABLE = photos.csv
# Checkpoints, and renderers that were trained with three seeds.
CHECKPOINT = checkpoints/default
RENDERED = checkpoints/rendered
RUNS = ck1 ck2 ck3
# Weights of the networks that measure.
LPIPS_ALEX = weights/alexnet.safetensors
LPIPS_VGG = weights/vgg16.safetensors
SQUEEZENET = weights/squeezenet1_1_features.npz
I3D = weights/i3d_kinetics400.safetensors
# Further flags of the tables of videos, which take hours: VIDEO_FLAGS="--clips 8 --frames 32 --slide-step 0" is quick.
VIDEO_FLAGS =

lpips = --lpips-network alex vgg --lpips-weights $(LPIPS_ALEX) $(LPIPS_VGG)

frames = evaluate.py frames --data $(DATA) --every 50 --checkpoint $(CHECKPOINT) $(lpips) --feature-weights $(SQUEEZENET)
frames_seeds = evaluate.py frames --data $(DATA) --every 50 --seeds-of $(RUNS) $(lpips) --feature-weights $(SQUEEZENET)
scenes = evaluate.py frames --data $(SCENES) --clips 24 --every 50 --checkpoint $(CHECKPOINT) $(lpips) --feature-weights $(SQUEEZENET)
magnified_2 = evaluate.py frames --data $(SCENES) --clips 12 --every 50 --checkpoint $(CHECKPOINT) --magnify 2
magnified_4 = evaluate.py frames --data $(SCENES) --clips 12 --every 50 --checkpoint $(CHECKPOINT) --magnify 4
video = evaluate.py video --data $(DATA) --checkpoint $(CHECKPOINT) --fvd-network i3d:$(I3D) $(lpips) $(VIDEO_FLAGS) --rows own:average \
	own:softmax own:gaussian other:softmax model:softmax model:gaussian
distortions = evaluate.py video --data $(DATA) --fvd-network i3d:$(I3D) $(lpips) $(VIDEO_FLAGS) --rows blur:1 blur:2 blur:4 shuffle:4 \
	shuffle:8 shuffle:16
placement = evaluate.py placement --photos $(PHOTOS) --masks $(MASKS) --photo-table $(PHOTO_TABLE) --split test \
	--checkpoint $(CHECKPOINT)
placement_rendered = evaluate.py placement --photos $(PHOTOS) --masks $(MASKS) --photo-table $(PHOTO_TABLE) --split test \
	--checkpoint $(RENDERED)
motion = evaluate.py motion --data $(DATA) --samples 2 --clip-table $(CLIP_TABLE) --checkpoint $(CHECKPOINT)
motion_rendered = evaluate.py motion --data $(DATA) --samples 2 --checkpoint $(RENDERED)
loops = evaluate.py motion --data $(DATA) --samples 1 --loop-frames 100 130 180 --checkpoint $(CHECKPOINT)
ablation = evaluate.py ablation --data $(SMALL_DATA) --grid 160x96 --steps 1500 --batch-size 2 --clips 16 --samples 2 --precision bf16 \
	--backbone squeezenet --backbone-weights $(SQUEEZENET) --fvd-network i3d:$(I3D)
data = evaluate.py data --data $(DATA) $(SCENES)
flow = evaluate.py flow --videos $(CLIPS)
splats = evaluate.py splats --image data/samples/blossom.jpg
splatting = benchmark.py splatting --repeats 7
animate = benchmark.py animate --frames 10 --repeats 1 --device cpu --checkpoint $(CHECKPOINT)
render = benchmark.py render --device cpu --threads 1 --checkpoint $(CHECKPOINT)
render_bf16 = benchmark.py render --device cpu --sizes 256x160 512x320 --frames 8 --precision bf16 --checkpoint $(CHECKPOINT)
page = benchmark.py page --checkpoint $(CHECKPOINT)

# By the weights that they measure.
OF_CHECKPOINT = frames scenes magnified_2 magnified_4 video placement motion loops animate render render_bf16 page
OF_RENDERED = placement_rendered motion_rendered
OF_RUNS = frames_seeds
OF_NONE = data flow splats splatting ablation distortions
TABLES = $(OF_CHECKPOINT) $(OF_RENDERED) $(OF_RUNS) $(OF_NONE)

results = $(patsubst %,$(OUT)/%/results.md,$1)

.PHONY: tables list
tables: $(call results,$(TABLES))

list:
	@: $(foreach table,$(TABLES),$(info $(PYTHON) $($(table)) --out $(OUT)/$(table)))

$(call results,$(OF_CHECKPOINT)): $(wildcard $(CHECKPOINT)/*/*)
$(call results,$(OF_RENDERED)): $(wildcard $(RENDERED)/*/*)
$(call results,$(OF_RUNS)): $(wildcard $(RUNS:=/*/*))

# A table whose command fails is made again. Exit code 3 is no failure: the table names the inputs that were left out.
.DELETE_ON_ERROR:
$(OUT)/%/results.md:
	@mkdir -p $(@D); start=$$(date +%s); $(PYTHON) $($*) --out $(@D); code=$$?; \
	echo "$$(( ($$(date +%s) - start) / 60 )) min, exit code $$code, $(@D): $($*)" | tee -a $(OUT)/log.txt; \
	[ $$code = 0 ] || [ $$code = 3 ]
