"""Mistakes that people make on command lines, each with words that its one line must have.

Files are those of `mistaken_files`.
"""

from __future__ import annotations

TUNE = [
    ("", "--space is missing"),
    ("--spaec spaces/good.py", "no option --spaec; did you mean '--space'?"),
    ("--space spaces/god.py", "spaces/god.py does not exist; did you mean 'spaces/good.py'?"),
    ("--space spaces", "spaces is a folder"),
    ("--space notes.md", "notes.md is no Python file"),
    ("--space photo.png", "photo.png is no Python file"),
    ("--space spaces/no_space.py", "defines no `space`"),
    ("--space spaces/syntax.py", "spaces/syntax.py:2: SyntaxError"),
    ("--space spaces/raises.py", "spaces/raises.py:2: KeyError"),
    ("--space spaces/misspelt_model.py", "no model 'resnet21'; did you mean 'resnet"),
    ("--space spaces/misspelt_objective.py", "no objective 'acuracy'; did you mean 'accuracy'?"),
    ("--space spaces/misspelt_field.py", "no field 'sparsity'; did you mean 'final_sparsity'?"),
    ("--space spaces/good.py --trials 0", "--trials is 0"),
    ("--space spaces/good.py --trials many", "--trials is 'many': it must be a whole number"),
    ("--space spaces/good.py --trials", "--trials needs a value"),
    ("--space spaces/good.py --epochs 0", "epochs is 0"),
    ("--space spaces/good.py --subset 50", "subset is 50.0: a share in (0, 1]"),
    (
        "--space spaces/good.py --data cifar11",
        "no such folder and no known data set; did you mean 'cifar10'?",
    ),
    ("--space spaces/good.py --workers -1", "workers is -1"),
    ("--space spaces/good.py --max-concurrent 0", "--max-concurrent is 0"),
    ("--space spaces/good.py --gpus -1", "--gpus is -1"),
    ("--space spaces/good.py --gpus 1", "--gpus is 1.0, but this machine has no GPU"),
    ("--space spaces/good.py --silent -5", "--silent is -5"),
    ("--space spaces/good.py --evidence -1", "--evidence is -1"),
    ("--space spaces/good.py --name ../../outside", "--name is '../../outside'"),
    ("--space spaces/good.py --results notes.md", "notes.md is a file"),
    ("--space spaces/good.py --name other", "holds another sweep"),
    ("--space spaces/good.py --keep bst", "--keep is 'bst'; did you mean 'best'?"),
    ("--space spaces/good.py --early-stopping yes", "--name or --no-name"),
]
TRAIN = [
    ("prunning", "no family 'prunning'; did you mean 'pruning'?"),
    ("pruning --prune.sparsity 0.8", "did you mean '--prune.final-sparsity'?"),
    ("pruning --prune.final-sparsity 80", "prune.final_sparsity is 80"),
    ("pruning --recipe.epochs 0", "recipe.epochs is 0"),
    ("pruning --recipe.lr -0.1", "recipe.lr is -0.1"),
    ("pruning --recipe.schedule cosin", "'cosin'; did you mean 'cosine'?"),
    ("pruning --image-size 2", "image_size is 2: 8 pixels or more"),
    ("pruning --model resnet21", "no model 'resnet21'; did you mean 'resnet"),
    ("pruning --model nets.small", "no model 'nets.small'"),
    ("pruning --model nets:small", "nets"),
    ("pruning --data photo", "no known data set; did you mean 'photos'?"),
    ("pruning --data empty", "--data empty: no images there"),
    ("pruning --data strange_splits", "holdout"),
    ("pruning --data notes.md", "notes.md is a file"),
    ("pruning --workers 3:1", "--workers 3:1: the first is at least 1"),
    ("pruning --workers 0", "workers is 0"),
    ("pruning --workers two", "--workers 'two': a number"),
    ("pruning --workers 990 --recipe.batch 990", "this machine has"),
    ("pruning --strategy zero9", "'zero9'; did you mean 'zero"),
    ("pruning --gpus -1", "--gpus is -1"),
    ("pruning --recipe-file notes.md", "notes.md is not a recipe file"),
    ("pruning --recipe-file nowhere.json", "nowhere.json is not a recipe file"),
    ("pruning --checkpoint notes.md", "notes.md is no checkpoint"),
    ("pruning --checkpoint empty", "empty is a folder"),
    ("pruning --store empty", "empty is a folder"),
    ("pruning --store notes.md/net.packed", "notes.md is a file"),
    ("pruning --results notes.md", "notes.md is a file"),
    ("pruning --distill.teacher net.paked", "net.paked; did you mean 'net.packed'?"),
    (
        "pruning --distill.teacher net.packed --image-size 8 --recipe.crop 0 --data photos",
        "the model in net.packed has 10 classes, but the data has 2",
    ),
    ("pruning --distill.teacher notes.md", "notes.md holds no trained model"),
    ("pruning --distill.teacher other#7", "other holds no model of trial '7'"),
    ("pruning --start-from photo.png", "photo.png holds no trained model"),
    ("pruning --pipeline.stages 2 --distill.teacher net.packed", "distill"),
]
COMPARE = [
    ("--goal byte", "no goal 'byte'; did you mean 'bytes'?"),
    ("--budget soon", "--budget is 'soon': a time such as 45m"),
    ("--budget -2h", "--budget"),
    ("--within -1", "--within is -1"),
    ("--within nan", "--within is nan"),
    ("--techniques prunes", "'prunes'; did you mean 'prune'?"),
    ("--constraint latency<2", "no figure 'latency'; did you mean 'latency_ms'?"),
    ("--seeds 1", "--seeds is 1: 2 or more"),
    ("--model resnet21", "no model 'resnet21'; did you mean 'resnet"),
    ("--subset 0", "subset is 0.0"),
    ("--epochs 0", "epochs is 0"),
    ("--max-concurrent 0", "--max-concurrent is 0"),
    ("--gpus -1", "--gpus is -1"),
    ("--price-per-hour -1", "--price-per-hour is -1"),
    ("--name ../x", "--name is '../x'"),
    ("--results notes.md", "notes.md is a file"),
    ("--teacher nowhere", "no file nowhere"),
]
REPORT = [
    ("", "name a sweep's folder"),
    ("results/othr", "did you mean 'results/other'?"),
    ("empty", "empty holds no results"),
    ("notes.md", "notes.md is a file"),
    ("results/other --html nowhere/page.html", "nowhere/page.html"),
    ("results/other --html empty", "empty is a folder"),
    ("results/other --htlm page.html", "did you mean '--html'?"),
    ("results/other results/more", "results/more holds no results"),
    ("empty --rebuild", "empty holds no"),
]
EXPORT = [
    ("", "FILE is missing"),
    ("net.paked", "no file net.paked; did you mean 'net.packed'?"),
    ("empty", "empty is a folder"),
    ("notes.md", "notes.md holds no trained model"),
    ("foreign.safetensors", "foreign.safetensors holds no trained model"),
    ("graph.onnx", "graph.onnx is an ONNX graph"),
    ("net.packed --images 0", "--images is 0"),
    ("net.packed --model resnet44", "holds a model of vit32x1, not resnet44"),
    ("net.packed --onnx out.onnx --data photos", "photos has 2 classes, the model 10"),
    ("net.packed --out empty", "empty is a folder"),
    ("net.packed --onnx empty", "empty is a folder"),
    ("net.packed --out notes.md/net.packed", "notes.md is a file"),
]
PREDICT = [
    ("", "FILE"),
    ("net.packed", "name one image or more"),
    ("net.packed nowhere.png", "no image nowhere.png"),
    ("net.packed photos", "photos is a folder"),
    ("net.packed notes.md", "notes.md is not a readable image"),
    ("net.packed photo.png --top 0", "--top is 0"),
    ("net.paked photo.png", "no file net.paked; did you mean 'net.packed'?"),
    ("photo.png net.packed", "photo.png holds no trained model"),
    ("graph.onnx photo.png", "graph.onnx is no ONNX graph that raybench wrote"),
    ("empty photo.png", "empty is a folder"),
]
OTHERS = [
    ("bench setp", "no bench 'setp'; did you mean 'step'?"),
    ("bench step --jsn", "did you mean '--json'?"),
    ("techniques --pair prune", "--pair takes two names"),
    ("techniques --pair prune monarc", "did you mean 'monarch'?"),
    ("techniques --model resnet21", "no model 'resnet21'"),
    ("techniques --model resnet20 --classes 0", "classes is 0"),
    ("techniques --model vit32x1 --image-size 0", "image_size is 0"),
    ("tunes", "no command 'tunes'; did you mean 'tune'?"),
    ("--hepl", "no command '--hepl'"),
]
GROUPS = {"tune": TUNE, "train": TRAIN, "compare": COMPARE, "report": REPORT}
GROUPS |= {"export": EXPORT, "predict": PREDICT, "": OTHERS}
MISTAKES = [
    (f"{command} {typed}".strip(), advice)
    for command, mistakes in GROUPS.items()
    for typed, advice in mistakes
]
