"""The columns that every run has, whatever its techniques. They are declared only here."""

from __future__ import annotations

from raybench.results.column import Column

INPUTS = (
    "family",
    "model",
    "model_source",
    "data",
    "image_size",
    "subset",
    "seed",
    "start_from",
    "latency",
)
"""The fields of an Experiment that are in no group, so that their columns' names have no dot. A
test compares them with the class."""
SETTINGS = ("recipe", "parallel", "pipeline")
"""The groups of an Experiment that are not techniques."""

FINISHED = ("COMPLETE", "PRUNED", "FAILED")
"""The statuses of a trial that has ended."""

IDENTITY: dict[str, Column] = {
    "sweep": Column(str, "", "Name of the sweep and of its folder."),
    "trial": Column(str, "", "Name of the trial and of its files under `models/`."),
    "number": Column(int, "", "Number of the trial in its sweep, from 0."),
}
EPOCH = Column(int, "", "The epoch, from 1; for a trial, the last one that it reported.")
OUTCOME: dict[str, Column] = {
    "status": Column(str, "", "RUNNING, COMPLETE, PRUNED (stopped early) or FAILED."),
    "stop_reason": Column(str, "", "Why a trial was stopped early or failed, in one line."),
    "failure": Column(str, "", "Path of the failed trial's traceback, relative to the folder."),
    "epoch": EPOCH,
    "retries": Column(int, "", "How often the trial resumed after its worker or node was lost."),
    "last_failure": Column(str, "", "What was lost the last time, in one line."),
    "key": Column(str, "", "Hash of the Experiment: equal keys are equal experiments."),
    "params": Column(str, "JSON", "The parameters that the space suggested, by Optuna's names."),
}
METRICS: dict[str, Column] = {
    "loss": Column(float, "nats", "Training loss, mean over the epoch."),
    "validation_loss": Column(float, "nats", "Loss on the validation images."),
    "accuracy": Column(float, "share", "Share of the validation images classified correctly."),
    "test_accuracy": Column(
        float,
        "share",
        "Share of the test images classified correctly; scored once, at the end, with the model "
        "read back from its file.",
    ),
    "test_loss": Column(float, "nats", "Loss of that model on the test images."),
    "model_bytes": Column(
        int,
        "bytes",
        "Size of the stored file; before the end, the size if training stopped now.",
    ),
    "torch_save_bytes": Column(
        int, "bytes", "Size of the plain network in fp32 as `torch.save` writes it."
    ),
    "parameters": Column(int, "", "Number of the trained model's parameters."),
    "flops": Column(
        int, "operations", "Operations of one image's forward pass; a multiply-add counts as two."
    ),
    "lr": Column(float, "", "Learning rate at the end of the epoch."),
    "images_per_s": Column(float, "images/s", "Training images per second, over all workers."),
    "samples_per_s": Column(
        float, "images/s", "The same without the run's first steps and without probed steps."
    ),
    "s_per_epoch": Column(float, "s", "Training only, mean over the epochs so far."),
    "s_per_batch": Column(float, "s", "Training only, per step, mean over the epochs so far."),
    "inference_s": Column(float, "s", "One pass over the validation images in fp32."),
    "train_s": Column(float, "s", "Training only, summed over the epochs so far."),
    "eval_s": Column(float, "s", "Evaluation, summed over the epochs so far."),
    "compile_s": Column(
        float, "s", "Compiling the model, before the first step and outside `train_s`."
    ),
    "energy_j": Column(
        float,
        "J",
        "Energy of the machine's processors and of the GPU in the epoch's steps, other processes "
        "included; null if the machine cannot measure it.",
    ),
    "startup_s": Column(float, "s", "From the call to the first training step."),
    "wall_s": Column(float, "s", "From the call to the end of the epoch."),
    "latency_ms": Column(
        float,
        "ms",
        "Median time for one image in ONNX Runtime on one thread; finished model.",
    ),
    "latency_test_accuracy": Column(
        float, "share", "Test accuracy of the graph whose latency was measured."
    ),
    "peak_memory_bytes": Column(
        int, "bytes", "Peak memory of the process since the run began, or of the GPU's allocator."
    ),
    "peak_above_start_bytes": Column(
        int, "bytes", "That peak minus the memory that the process held when the run began."
    ),
    "memory_bytes": Column(int, "bytes", "All states and activations of the first worker."),
    "parameters_bytes": Column(int, "bytes", "Parameters that the first worker holds."),
    "gradients_bytes": Column(int, "bytes", "Gradients that the first worker holds."),
    "optimizer_bytes": Column(int, "bytes", "Optimizer state that the first worker holds."),
    "activations_bytes": Column(
        int, "bytes", "Activations that the first worker keeps for the backward pass."
    ),
    "buffers_bytes": Column(int, "bytes", "Buffers that the first worker holds."),
    "theory_parameters_bytes": Column(int, "bytes", "Parameters of a worker by theory."),
    "theory_gradients_bytes": Column(int, "bytes", "Gradients of a worker by theory."),
    "theory_optimizer_bytes": Column(int, "bytes", "Optimizer state of a worker by theory."),
    "theory_buffers_bytes": Column(int, "bytes", "Buffers of a worker by theory."),
    "theory_activations_bytes": Column(
        int, "bytes", "Activations of a worker by theory; only for ViTs in fp32."
    ),
    "theory_sent_bytes": Column(int, "bytes", "Sent by a worker per step, by theory."),
    "sent_bytes_per_step": Column(
        int,
        "bytes",
        "Sent by a worker per step, mean over the workers: gradients by theory, tokens counted.",
    ),
    "workers_used": Column(int, "", "Workers in the epoch; in an elastic run they may change."),
    "compute_s": Column(float, "s", "Computation in the epoch's last step, on the first worker."),
    "communication_s": Column(float, "s", "Exchange between the workers in that step."),
    "waiting_s": Column(float, "s", "Waiting for the other workers in that step."),
    "precision_used": Column(str, "", "Dtype of the forward pass: float32, bfloat16 or float16."),
    "first_weights": Column(str, "", "fresh, pretrained, or a trained model's."),
    "bubble_predicted": Column(
        float, "share", "Idle share of the stages if all were equally fast and transfers free."
    ),
    "bubble": Column(float, "share", "Idle share of the stages in the last epoch, measured."),
    "imbalance": Column(float, "", "Busy time of the busiest stage over the mean of all stages."),
    "wire_bytes_per_step": Column(
        int, "bytes", "Sent over all boundaries between stages per step, in both directions."
    ),
    "zero_range_tiles": Column(
        int, "", "Tiles of equal values between stages in the epoch; not counted at 32 bits."
    ),
    "nonfinite_tensors": Column(
        int, "", "Tensors between stages with NaN or infinity; the first ends the run as diverged."
    ),
    "clipped_share": Column(float, "share", "Values between stages beyond their tile's scale."),
    "restarts": Column(int, "", "Restarts of stages that died."),
    "cuts": Column(str, "", "First block of every stage but the first."),
}
"""The metrics that a run reports, in both tables. Null if they do not apply, such as `bubble`
without stages."""

PROVENANCE: dict[str, Column] = {
    "started": Column(str, "UTC", "When the trial started, in ISO 8601."),
    "queue_s": Column(float, "s", "From the suggestion of the trial to its start on a worker."),
    "data_sha256": Column(str, "", "Hash of the images and labels."),
    "commit": Column(str, "", "Commit of raybench, with `-dirty` where tracked files differ."),
    "source_sha256": Column(str, "", "Hash of raybench's sources."),
    "python": Column(str, "", "Version of Python."),
    "torch": Column(str, "", "Version of torch."),
    "torchvision": Column(str, "", "Version of torchvision."),
    "timm": Column(str, "", "Version of timm."),
    "ray": Column(str, "", "Version of Ray."),
    "optuna": Column(str, "", "Version of Optuna."),
    "cpu": Column(str, "", "The processor's name."),
    "cpu_features": Column(str, "", "Its instruction sets that matter for speed."),
    "cpu_count": Column(int, "", "Processors that the process may use."),
    "gpu": Column(str, "", "The GPU's name; empty without one."),
    "host": Column(str, "", "Hash of the machine's name."),
    "threads": Column(int, "", "Threads of each process of the trial."),
}

CORE: dict[str, Column] = IDENTITY | OUTCOME | METRICS | PROVENANCE
