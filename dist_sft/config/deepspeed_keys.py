"""The keys that DeepSpeed 0.19.8 reads. It ignores unknown ones in silence; we do not.

Literal lists, since importing deepspeed imports torch; tests/config/test_deepspeed_keys.py compares them with what
DeepSpeed asks its config for.
"""

_NAMES = {
    "": """
        activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger
        communication_data_type compile csv_monitor data_efficiency data_types dataloader_drop_last
        datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel flops_profiler fp16
        gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor
        hybrid_engine log_level managed_gradient_accumulation memory_breakdown optimizer pipeline
        prescale_gradients scheduler seq_parallel_communication_data_type sequence_parallel_size steps_per_print
        tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
        use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization
        zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
    """,
    "bf16": """
        enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states
    """,
    "zero_optimization": """
        stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
        allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights
        elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload_param
        cpu_offload_use_pin_memory cpu_offload stage3_prefetch_bucket_size stage3_param_persistence_threshold
        stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance
        stage3_gather_16bit_weights_on_model_save stage3_module_granularity_threshold
        stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
        stage3_gather_fp16_weights_on_model_save ignore_unused_parameters legacy_stage1 round_robin_gradients
        parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights
        zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply
        log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module
    """,
    "zero_optimization.offload_param": """
        device nvme_path buffer_count buffer_size max_in_cpu pin_memory
    """,
    "zero_optimization.offload_optimizer": """
        device nvme_path buffer_count pin_memory pipeline_read pipeline_write fast_init ratio super_offload
        cpuadam_cores_perc
    """,
}

KNOWN = {section: frozenset(names.split()) for section, names in _NAMES.items()}
"""By section, dotted; "" is the top level."""
