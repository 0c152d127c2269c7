# The tables of docs/results.md. Each writes results.md, .csv and .json into $(OUT)/NAME, and a line of how long it took
# into $(OUT)/log.txt.
#   make list                        the commands
#   make tables DATA=sets/real ...   those that are not there yet, or are older than the weights; -k goes on after errors
#   make tables TABLES="frames data" some of them

PYTHON = python
OUT = outputs/tables
# Clip sets of prepare_data.py, the test videos that DATA was made of, and a table of the subjects of all.
DATA = sets/real
SCENES = sets/scenes
# That of the ablation, whose trainings are many: DATA made with --size 160x96.
SMALL_DATA = sets/real160
CLIPS = clips
CLIP_TABLE = clips.csv
# Photographs, masks of what can move in them, and their table.
PHOTOS = photos
MASKS = masks
PHOTO_TABLE = photos.csv
# Models, and exported renderers of three training seeds.
CHECKPOINT = checkpoints/default
RENDERED = checkpoints/rendered
RUNS = ck1 ck2 ck3
# Networks that measure.
LPIPS_ALEX = weights/alexnet.safetensors
LPIPS_VGG = weights/vgg16.safetensors
SQUEEZENET = weights/squeezenet1_1_features.npz
I3D = weights/i3d_kinetics400.safetensors
# Of the tables of videos, which take hours: VIDEO_FLAGS="--clips 8 --frames 32 --slide-step 0" makes them small.
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

WITHOUT_WEIGHTS = data flow splats splatting ablation distortions
TABLES = frames frames_seeds scenes magnified_2 magnified_4 video placement placement_rendered motion \
	motion_rendered loops animate render render_bf16 page $(WITHOUT_WEIGHTS)

results = $(patsubst %,$(OUT)/%/results.md,$1)

.PHONY: tables list
tables: $(call results,$(TABLES))

list:
	@: $(foreach table,$(TABLES),$(info $(PYTHON) $($(table)) --out $(OUT)/$(table)))

$(call results,$(filter-out $(WITHOUT_WEIGHTS),$(TABLES))): $(wildcard $(CHECKPOINT)/*/*)

# Exit code 3: inputs were left out, which the table names.
$(OUT)/%/results.md:
	@mkdir -p $(@D); start=$$(date +%s); $(PYTHON) $($*) --out $(@D); code=$$?; \
	echo "$$(( ($$(date +%s) - start) / 60 )) min, exit code $$code, $(@D): $($*)" | tee -a $(OUT)/log.txt; \
	[ $$code = 0 ] || [ $$code = 3 ]
