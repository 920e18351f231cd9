"""Every detector of a fault is needed: with one line of it changed, a test fails.

Each row changes a line of a copy of the package, and runs a test there.
"""
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TESTS_FAILED = 1  # pytest's exit code; others say that it could not run them


@dataclasses.dataclass(frozen=True)
class Mutation:
  """fault: what is no longer noticed.   file: below the root.   line: text that is in it once.   test: what fails."""
  fault: str
  file: str
  line: str
  changed: str
  test: str


MUTATIONS = (
  # ---------------------------------------------------------------------------------------- killed and stopped runs
  Mutation('steps of a killed run are written twice', 'llm_jax/train/stage.py',
           'session.writer.rewind(stage.name, start.step)', 'start.step',
           'tests/train/test_faults.py::test_skipped_steps_are_the_same_after_a_kill'),
  Mutation('a resumed run reads its data from the start', 'llm_jax/data/batches.py',
           'self._samples = position.samples', 'pass',
           'tests/data/test_batches.py::test_resumed_is_uninterrupted'),
  Mutation('an interrupted save counts as a checkpoint', 'llm_jax/checkpoints/folders.py',
           r"re.compile(r'(\d{8,})(\.old)?')", r"re.compile(r'(\d{8,})(\.old|\.saving)?')",
           'tests/checkpoints/test_damage.py::test_kill_in_the_middle_of_a_save'),
  Mutation('a process of the run dies', 'llm_jax/runtime/peers.py',
           'if not link.is_open and other not in self._gone:', 'if False:',
           'tests/runtime/test_peers.py::test_all_others_end_with_the_name_of_the_one_that_died'),
  Mutation('the run is asked to stop', 'llm_jax/runtime/preemption.py',
           'return self._stop_at is not None and self._num_checks >= self._stop_at', 'return False',
           'tests/runtime/test_processes.py::test_requests_ask_once_and_twice_does_no_harm'),
  Mutation('processes are asked to stop at different steps', 'llm_jax/runtime/preemption.py',
           'return max(found) + 1 if', 'return min(found) + 1 if',
           'tests/runtime/test_peers.py::test_all_stop_after_the_same_step_whoever_is_asked'),
  # ---------------------------------------------------------------------------------------- checkpoints
  Mutation('a file of a checkpoint has changed', 'llm_jax/checkpoints/manifest.py',
           'if entry != manifest.files[name]:', 'if False:',
           'tests/checkpoints/test_damage.py::test_damage_is_named_and_the_newest_valid_one_taken'),
  Mutation('a manifest has changed', 'llm_jax/checkpoints/manifest.py',
           'if raw != _encode(body):', 'if False:',
           'tests/checkpoints/test_damage.py::test_a_thousand_flipped_bits_are_all_noticed'),
  Mutation('a foreign file is in a checkpoint', 'llm_jax/checkpoints/manifest.py',
           'for name in sorted(found - manifest.files.keys()):', 'for name in ():',
           'tests/checkpoints/test_damage.py::test_a_foreign_file_is_refused'),
  Mutation('a checkpoint has the name of another step', 'llm_jax/checkpoints/checkpoint.py',
           'if step_of(path) != step:', 'if False:',
           'tests/checkpoints/test_damage.py::test_whole_checkpoints_under_each_others_names'),
  Mutation('all checkpoints are damaged', 'llm_jax/checkpoints/store.py',
           'if problems:', 'if False:',
           'tests/checkpoints/test_damage.py::test_all_bad_is_an_error_never_a_fresh_start'),
  Mutation('the checkpoints of a stage are gone', 'llm_jax/train/own_checkpoints.py',
           'if noted is not None or _was_saved(run, records):', 'if False:',
           'tests/train/test_stage.py::test_a_stage_whose_checkpoints_are_gone_is_named'),
  Mutation('a checkpoint is of another run', 'llm_jax/train/own_checkpoints.py',
           'if all(differences):', 'if False:',
           'tests/train/test_stage.py::test_a_checkpoint_of_another_run_is_named'),
  Mutation('a checkpoint is of another tokenizer', 'llm_jax/train/starting_point.py',
           'if checkpoint.metadata.tokenizer != tokenizer.fingerprint:', 'if False:',
           'tests/train/test_stage.py::test_a_checkpoint_of_another_tokenizer_is_refused_with_both_fingerprints'),
  Mutation('the clock is wrong', 'llm_jax/checkpoints/folders.py',
           'key=lambda each: (-each.step, each.path.suffix)', 'key=lambda each: -each.path.stat().st_mtime',
           'tests/checkpoints/test_store.py::test_latest_is_the_highest_step_whatever_the_clock_says'),
  Mutation('a checkpoint is read onto another mesh', 'llm_jax/checkpoints/checkpoint.py',
           "return getattr(leaf, 'sharding', None) or", 'return',
           'tests/checkpoints/test_store.py::test_another_mesh'),
  Mutation('a checkpoint goes while it is verified', 'llm_jax/checkpoints/store.py',
           'with hold(each.path):', 'if True:',
           'tests/checkpoints/test_folders.py::test_a_reader_that_takes_longer_than_a_save_is_not_overtaken_for_ever'),
  # ---------------------------------------------------------------------------------------- disks
  Mutation('a save fails', 'llm_jax/checkpoints/saver.py',
           'self._error = error', 'pass',
           'tests/checkpoints/test_store.py::test_disk_full_at_the_manifest'),
  Mutation('the disk is full', 'llm_jax/runtime/errors.py',
           'if error.errno not in FULL:', 'if True:',
           'tests/train/test_full_disk.py::test_tokens_that_do_not_fit_name_the_folder_and_the_way_out'),
  Mutation('the folder is read-only', 'llm_jax/tracking/run_folder.py',
           'with tempfile.TemporaryFile(dir=self.path):', 'if True:',
           'tests/tracking/test_run_folder.py::test_prepare_refuses_a_read_only_folder'),
  Mutation('the metrics cannot be written', 'llm_jax/tracking/metrics.py',
           'except Exception as error:  # whatever', 'except ZeroDivisionError as error:  # whatever',
           'tests/tracking/test_metrics.py::test_a_failing_disk_warns_once_and_recovers'),
  Mutation('a file is cut short while it is read', 'llm_jax/runtime/array_file.py',
           'if count == 0:', 'if count == 0:\n      return content\n    if False:',
           'tests/runtime/test_array_file.py::test_a_file_that_is_cut_short_is_named'),
  # ---------------------------------------------------------------------------------------- configurations and ranks
  Mutation('a second run takes the same folder', 'llm_jax/runtime/files.py',
           "raise TimeoutError(f'{path}: another process holds this lock')", 'return',
           'tests/tracking/test_run_folder.py::test_a_second_run_is_refused_naming_the_first'),
  Mutation('a run goes on with another configuration', 'llm_jax/tracking/run_config.py',
           'return field.safe is not None and not field.safe.unless(change)', 'return True',
           'tests/tracking/test_run_config.py::test_other_changes_name_field_old_and_new_and_change_nothing'),
  Mutation('processes differ', 'llm_jax/runtime/processes.py',
           'if different:', 'if False:',
           'tests/runtime/test_processes.py::test_they_agree_or_all_name_the_one_that_differs'),
  Mutation('processes have other code', 'llm_jax/train/run.py',
           "f'{code_digest()} {package_versions()} {execution.dtype}'", "'code'",
           'tests/tracking/test_run_folder.py::test_processes_whose_sources_differ_do_not_agree'),
  Mutation('processes read other data', 'llm_jax/train/data.py',
           'fingerprints += opened.fingerprints', 'pass',
           'tests/train/test_stage.py::test_processes_that_read_other_data_do_not_agree'),
  Mutation('every process reads the first rows', 'llm_jax/data/batches.py',
           'samples = start + self.rows', 'samples = start + np.arange(len(self.rows))',
           'tests/data/test_batches.py::test_every_process_reads_only_its_rows'),
  Mutation('a process hangs', 'llm_jax/runtime/watchdog.py',
           'if idle > limit:', 'if False:',
           'tests/runtime/test_watchdog.py::test_watchdog_ends_a_stuck_process_naming_the_phase_and_the_place'),
  Mutation('a process is stopped', 'llm_jax/runtime/peers.py',
           'if silent > SILENCE_SECONDS and', 'if False and',
           'tests/runtime/test_peers.py::test_one_that_is_silent_is_lost'),
  # ---------------------------------------------------------------------------------------- answers that a run samples
  Mutation('code is run without leave', 'llm_jax/config/rewards.py',
           "require(self.allow_code, 'allow_code'", "require(True, 'allow_code'",
           'tests/rollout/test_rewards.py::test_refused'),
  Mutation('every part of the samples draws the same', 'llm_jax/train/samples.py',
           'jax.random.fold_in(key, number)', 'key',
           'tests/train/test_samples.py::test_every_part_draws_for_itself'),
  Mutation('samples of a model that is gone are learnt', 'llm_jax/train/samples.py',
           "manifest['model'] == manifest_digest(checkpoint)", 'True',
           'tests/train/test_samples.py::test_another_model_answers_anew'),
  Mutation('parts of another model are joined', 'llm_jax/rollout/sample_files.py',
           "if noted != {'model': model} and self.folder.exists():", 'if False:',
           'tests/train/test_samples.py::test_parts_of_another_model_are_not_joined'),
  Mutation('samples are damaged', 'llm_jax/rollout/sample_files.py',
           "hashlib.sha256(content).hexdigest() != manifest['sha256']", 'False',
           'tests/rollout/test_sample_files.py::test_damaged_samples_are_named'),
  Mutation('an answer that was cut off is learnt', 'llm_jax/rollout/ranking.py',
           "if answer['ended'] and answer['text'].strip()]", "if answer['text'].strip()]",
           'tests/rollout/test_ranking.py::test_what_was_cut_off_or_says_nothing_is_not_learnt'),
  # --------------------------------------------------------------------------------- functions that a model calls
  Mutation('what a function returned is learnt', 'llm_jax/rollout/buffer.py',
           'return is_answer if self.own is None else is_answer & (self.own[rows] > 0)', 'return is_answer',
           'tests/rollout/test_tools.py::test_what_a_function_returned_is_not_learnt'),
  Mutation('a function is waited for without end', 'llm_jax/rollout/tools.py',
           'select.select([process.stdout], [], [], seconds)', 'select.select([process.stdout], [], [], 3)',
           'tests/rollout/test_tools.py::test_results_are_text'),
  Mutation('later turns draw as the first one does', 'llm_jax/rollout/turns.py',
           'jax.random.fold_in(key, CHANCE + turn)', 'key',
           'tests/rollout/test_tools.py::test_only_those_that_call_go_on'),
  Mutation('an answer outgrows its tokens', 'llm_jax/rollout/turns.py',
           'if len(answer.ids) <= room:', 'if True:',
           'tests/rollout/test_tools.py::test_tokens_are_bounded'),
  # ---------------------------------------------------------------------------------------- online DPO, distillation
  Mutation('the worse answer is chosen', 'llm_jax/rollout/pair_source.py',
           'best, worst = rewards.argmax(1), rewards.argmin(1)', 'best, worst = rewards.argmin(1), rewards.argmax(1)',
           'tests/rollout/test_pair_source.py::test_the_best_and_the_worst'),
  Mutation('pairs without preference are learnt', 'llm_jax/rollout/pair_source.py',
           'is_preferred = gaps > 0', 'is_preferred = gaps >= 0',
           'tests/rollout/test_pair_source.py::test_pairs_without_preference_have_no_weight'),
  Mutation('every part of the teacher\'s ids draws the same', 'llm_jax/train/teacher_ids.py',
           'key=jax.random.fold_in(key, part)', 'key=key',
           'tests/train/test_teacher_ids.py::test_ids_are_drawn_from_the_teacher'),
  Mutation('ids belong to other rows', 'llm_jax/train/teacher_ids.py',
           'placement.read_rows(rows)', 'placement.read(part * stage.batch_size)',
           'tests/train/test_teacher_ids.py::test_ids_are_drawn_from_the_teacher'),
  Mutation('all answers are the student\'s', 'llm_jax/rollout/text_source.py',
           'is_own = np.asarray(draws) < objective.own_answers', 'is_own = np.asarray(draws) < 2',
           'tests/rollout/test_text_source.py::test_a_share_is_of_the_data'),
  # ---------------------------------------------------------------------------------------- data
  Mutation('a run goes on with other data', 'llm_jax/data/batches.py',
           '    check_same_data(position.fingerprint, self.fingerprint)\n    self.close()\n    self._samples',
           '    self.close()\n    self._samples',
           'tests/data/test_batches.py::test_a_changed_component_is_named'),
  Mutation('a file changes while earlier stages train', 'llm_jax/data/sources/documents.py',
           'if contents.get(name) != digests.get(name)]', 'if False]',
           'tests/data/test_dataset.py::test_files_that_hold_something_else_are_named'),
  Mutation('a later stage reads what has changed', 'llm_jax/train/data.py',
           'if changed:', 'if False:',
           'tests/train/test_stage.py::test_data_that_changed_between_the_start_of_the_run_and_of_the_stage_is_named'),
  Mutation('a row is longer than memory may be', 'llm_jax/data/sources/formats.py',
           'if len(line) > LONGEST_ROW:', 'if False:',
           'tests/data/sources/test_documents.py::test_row_longer_than_the_limit'),
  Mutation('a row has no text', 'llm_jax/data/sources/formats.py',
           'if not isinstance(text, str):', 'if False:',
           'tests/data/sources/test_documents.py::test_bad_line_is_named_or_counted'),
  Mutation('a line of the records is damaged', 'llm_jax/tracking/jsonl.py',
           'return found if checksum == _checksum(found) else None', 'return found',
           'tests/tracking/test_metrics.py::test_a_damaged_line_is_named_and_passed_over'),
  Mutation('text has the name of a special token', 'llm_jax/data/tokenizers/huggingface.py',
           'encode_special_tokens = True  # names of special tokens', 'encode_special_tokens = False  #',
           'tests/data/tokenizers/test_base.py::test_ids_are_those_of_tiktoken_and_tokenizers'),
  Mutation('a special token is a word of the vocabulary too', 'llm_jax/data/tokenizers/huggingface.py',
           'self._spell_special_names(text) if self._has_special(ids) else ids', 'ids',
           'tests/data/tokenizers/test_base.py::test_control_token_that_is_also_a_word'),
  Mutation('a message has the name of a special token', 'llm_jax/data/tokenizers/byte_level.py',
           'for found in () if piece.is_guarded else names.finditer(piece.text):',
           'for found in names.finditer(piece.text):',
           'tests/data/tokenizers/test_chat_templates.py::test_no_content_becomes_a_control_token'),
  # ---------------------------------------------------------------------------------------- numbers
  Mutation('a gradient is not finite', 'llm_jax/train/step.py',
           'is_finite = jnp.isfinite(norm) & jnp.isfinite(loss.total)', 'is_finite = jnp.bool_(True)',
           'tests/train/test_step.py::test_a_step_that_is_not_finite_changes_nothing_but_counters'),
  Mutation('steps are skipped without end', 'llm_jax/train/hooks.py',
           'if in_a_row >= self.stage.max_nonfinite:', 'if False:',
           'tests/train/test_faults.py::test_a_diverged_run_goes_on_as_its_last_line_says'),
  Mutation('a loss jumps', 'llm_jax/train/step.py',
           'is_spike = is_finite & (observed > limit).any()', 'is_spike = jnp.bool_(False)',
           'tests/train/test_spikes.py::test_a_spike_of_100_times_is_skipped_and_only_that'),
  Mutation('a checkpoint is due while steps are skipped', 'llm_jax/train/hooks.py',
           'if int(state.skipped) == 0 or step in self.pinned:', 'if True:',
           'tests/train/test_stage.py::test_no_checkpoint_is_taken_while_steps_are_skipped'),
  Mutation('soft labels are taken for certain', 'llm_jax/objectives/loss.py',
           'return probability_B * as_labelled_B + (1 - probability_B) * as_not_labelled_B', 'return as_labelled_B',
           'tests/objectives/test_reward_model.py::test_soft_labels_weigh_the_two_losses'),
  Mutation('a soft label is read in the place of a margin', 'llm_jax/data/packing/pairs.py',
           "return (*margins, 'soft_labels') if self.has_soft_labels else margins",
           "return ('soft_labels', *margins) if self.has_soft_labels else margins",
           'tests/data/packing/test_pairs.py::test_soft_labels_stand_beside_margins'),
  # ---------------------------------------------------------------------------------------- judges and revisions
  Mutation('a judge favours the first place', 'llm_jax/rollout/judging.py',
           'return self.in_both_orders(judge, pairs).mean(1)', 'return self.in_both_orders(judge, pairs)[:, 0]',
           'tests/rollout/test_judging.py::test_a_pair_is_asked_about_in_both_orders'),
  Mutation('the two orders are judged by different principles', 'llm_jax/rollout/judging.py',
           '*sorted((pair.first, pair.second))', 'pair.first, pair.second',
           'tests/rollout/test_judging.py::test_principles_are_drawn_by_the_texts'),
  Mutation("a judge's template lacks a field", 'llm_jax/config/judges.py',
           "require(not missing, 'template'", "require(True, 'template'",
           'tests/rollout/test_judging.py::test_refused'),
  Mutation('an option is several tokens', 'llm_jax/rollout/judging.py',
           "require(len(ids) == 1, 'options'", "require(True, 'options'",
           'tests/rollout/test_judging.py::test_options_are_single_tokens'),
  Mutation('a revision that was cut off is learnt', 'llm_jax/rollout/revising.py',
           'return self.ended and bool(self.text.strip())', 'return bool(self.text.strip())',
           'tests/rollout/test_revising.py::test_what_is_cut_off_takes_no_place'),
  Mutation('every revision is of the first answer', 'llm_jax/rollout/revising.py',
           'current[place] = revised[place]', 'pass',
           'tests/rollout/test_revising.py::test_what_is_asked'),
  Mutation('critique and revision draw the same numbers', 'llm_jax/train/sample_parts.py',
           'jax.random.fold_in(key, 1 + call)', 'jax.random.fold_in(key, 1)',
           'tests/train/test_revisions.py::test_the_model_itself_criticises_and_revises'),
  Mutation('the worse answer of a judged pair is chosen', 'llm_jax/rollout/ranking.py',
           'rejected, chosen = sorted(', 'chosen, rejected = sorted(',
           'tests/rollout/test_ranking.py::test_a_judged_pair_has_the_probability_of_its_chosen_answer'),
  Mutation('one order is enough in the arena', 'llm_jax/arena/battles.py',
           "'left' if both.all() else 'tie' if both.any() else 'right'", "'left' if both[0] else 'right'",
           'tests/arena/test_arena.py::test_a_language_model_has_to_say_so_in_both_orders'),
  # ---------------------------------------------------------------------------------------- evaluations
  Mutation('a choice has no token of its own', 'llm_jax/harness/text.py',
           "require(len(pair[1]) > 0, 'continuation'", "require(True, 'continuation'",
           'tests/harness/test_text.py::test_what_cannot_be_scored'),
  Mutation('an index has the vectors of another model', 'llm_jax/retrieve/index.py',
           'self.vectors.fingerprint == fingerprint', 'True',
           'tests/retrieve/test_dense.py::test_an_index_keeps_its_vectors_and_refuses_others'),
  Mutation('a file of an index has changed', 'llm_jax/retrieve/index.py',
           'require(is_whole,', 'require(True,',
           'tests/retrieve/test_retrieve.py::test_a_changed_index_is_refused'),
  Mutation('an index is of other texts', 'llm_jax/retrieve/index.py',
           'require(made_of in (None, index.made_of),', 'require(True,',
           'tests/retrieve/test_retrieve.py::test_a_changed_index_is_refused'),
  Mutation('a question is too long with its passages', 'llm_jax/prompting/retrieval.py',
           'require(needed <= text.max_length,', 'require(True,',
           'tests/prompting/test_retrieval.py::test_what_is_too_long_with_its_passages_is_refused_before_a_run'),
  Mutation('a question is too long for its strategy', 'llm_jax/prompting/room.py',
           'require(needed <= text.max_length,', 'require(True,',
           'tests/prompting/test_strategy_model.py::test_strategies_that_leave_no_room_are_refused_before_a_run'),
  Mutation('a question stands behind its own answer', 'llm_jax/prompting/strategy_model.py',
           'if exemplar.question != prompt]', ']',
           'tests/prompting/test_strategy_model.py::test_a_person_writes_the_examples_of_what_the_model_is_unsure_of'),
  Mutation('an expert had no room for a token', 'llm_jax/explain/trace.py',
           'None if capacity is None else within_capacity(expert_BTX, mixture.num_experts, capacity)', 'None',
           'tests/explain/test_in_a_browser.py::test_choices_of_experts_without_room_add_nothing'),
  Mutation('a prompt loses its examples', 'llm_jax/harness/run.py',
           'require(length <= room or truncate, where', 'require(True, where',
           'tests/harness/test_text.py::test_a_prompt_that_would_be_cut_is_named'),
  Mutation('a program does what it must not', 'llm_jax/runtime/sandbox_runner.py',
           'if reason is not None:', 'if False:',
           'tests/runtime/test_sandbox.py::test_what_is_not_allowed_is_stopped'),
  # ---------------------------------------------------------------------------------------- rewards
  Mutation('a reward model does not read what stands behind an answer', 'llm_jax/rollout/reward_models.py',
           'ids = (*answer.ids, *self.end) if answer.ended else answer.ids', 'ids = answer.ids',
           'tests/rollout/test_reward_models.py::test_the_score_is_that_of_transformers'),
  Mutation('every reward is the score of the first reward model', 'llm_jax/rollout/reward_models.py',
           'self.frozen.reward[name]', 'next(iter(self.frozen.reward.values()))',
           'tests/rollout/test_reward_models.py::test_the_score_is_that_of_transformers'),
  Mutation('prompts with more answers count more', 'llm_jax/objectives/reward_model.py',
           'is_pair / jnp.maximum(is_pair.sum(0), 1)', 'is_pair',
           'tests/objectives/test_reward_model.py::test_ranked_answers_by_a_formula'),
  Mutation('answers of one rank are compared', 'llm_jax/objectives/reward_model.py',
           '(is_here & (ranks[one] != ranks[other]))', 'is_here',
           'tests/objectives/test_reward_model.py::test_ranked_answers_by_a_formula'),
  # ---------------------------------------------------------------------------------------- imported models
  Mutation('tensors are missing or of another shape', 'llm_jax/hf/weights.py',
           'if problems:', 'if False:',
           'tests/hf/test_files.py::test_every_wrong_tensor_is_listed'),
  Mutation('tensors overlap or leave holes', 'llm_jax/hf/tensor_file.py',
           'if slot.start != end:', 'if False:',
           'tests/hf/test_safety.py::test_headers_that_lie'),
  Mutation('a tensor is twice in a header', 'llm_jax/hf/tensor_file.py',
           'if len(set(keys)) != len(keys):', 'if False:',
           'tests/hf/test_safety.py::test_a_tensor_named_twice_in_one_header'),
  Mutation('an index names a file elsewhere', 'llm_jax/hf/files.py',
           "require(plain and name.endswith('.safetensors'),", 'require(True,',
           'tests/hf/test_safety.py::test_bad_index'),
  Mutation('a link leads out of the folder', 'llm_jax/hf/files.py',
           'and file.resolve().parent in homes', '',
           'tests/hf/test_safety.py::test_links_that_lead_out'),
  Mutation('a folder brings code', 'llm_jax/hf/fields.py',
           "if self.values.get('auto_map') and 'auto_map' not in self.read:", 'if False:',
           'tests/hf/test_safety.py::test_code_of_the_folder_is_not_run'),
  Mutation('a folder brings pickles', 'llm_jax/hf/files.py',
           'if pickled:', 'if False:',
           'tests/hf/test_safety.py::test_pickles_are_refused'),
  Mutation('a tensor holds NaN', 'llm_jax/hf/finite.py',
           'if not count_not_finite(cast):', 'if True:',
           'tests/hf/test_finite.py::test_an_import_names_the_tensor_and_counts'),
)


@pytest.mark.parametrize('mutation', MUTATIONS, ids=lambda mutation: mutation.fault.replace(' ', '-'))
def test_what_is_changed_is_there_once(mutation):
  """So that the slow test below changes what it means to."""
  file, name = mutation.test.split('::')
  assert (ROOT / mutation.file).read_text().count(mutation.line) == 1
  assert f'def {name}(' in (ROOT / file).read_text()


def run_in_a_copy(folder: pathlib.Path, tests: list[str], mutation: Mutation | None = None) -> tuple[int, str]:
  """pytest's exit code and output in a copy of the package, one line of which may be changed."""
  for name in ('llm_jax', 'launch', 'tests', 'experiments'):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
  shutil.copy(ROOT / 'pyproject.toml', folder)
  if mutation is not None:
    path = folder / mutation.file
    path.write_text(path.read_text().replace(mutation.line, mutation.changed))
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests], cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  return done.returncode, done.stdout


@pytest.mark.slow
def test_in_an_unchanged_copy_all_pass(tmp_path):
  """So that what fails below fails for what was changed."""
  code, output = run_in_a_copy(tmp_path, list(dict.fromkeys(mutation.test for mutation in MUTATIONS)))
  assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize('mutation', MUTATIONS, ids=lambda mutation: mutation.fault.replace(' ', '-'))
def test_a_test_fails_without_the_detector(mutation, tmp_path):
  code, output = run_in_a_copy(tmp_path, [mutation.test], mutation)
  assert code == TESTS_FAILED, output
