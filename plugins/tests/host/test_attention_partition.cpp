// The partition of attention: visible keys, splits, workspace, merge groups.
#include "attention_partition.h"

#include <set>
#include <utility>

#include "check.h"

using namespace awq_edge;

TEST(past_length_never_leads_out_of_the_cache) {
  CHECK_EQ(clamped_past(-1, 100), 0);
  CHECK_EQ(clamped_past(0, 100), 0);
  CHECK_EQ(clamped_past(100, 100), 100);
  CHECK_EQ(clamped_past(int64_t{1} << 40, 100), 100);
}

TEST(visible_keys_are_the_union_of_what_each_token_sees) {
  for (int context : {1, 5, 17})
    for (int window : {0, 1, 3, 40})
      for (int past = 0; past <= context; ++past)
        for (int first = 0; first < 5; ++first)
          for (int last = first; last < 6; ++last) {
            const KeyRange keys = visible_keys(past, first, last, window, context);
            for (int key = 0; key < context; ++key) {
              bool seen = false;
              for (int token = first; token <= last; ++token)
                seen |= is_visible(key, past + token, window);
              // Tokens behind the context leave gaps that are read for nothing, never the reverse.
              if (seen) CHECK(key >= keys.begin && key < keys.end);
              if (past + last < context) CHECK_EQ(key >= keys.begin && key < keys.end, seen);
            }
            CHECK(keys.begin >= 0 && keys.begin <= keys.end && keys.end <= context);
          }
}

TEST(tiles_are_masked_or_skipped_exactly_when_they_must_be) {
  for (int window : {0, 1, 2, 7, 30})
    for (int begin = 0; begin < 12; ++begin)
      for (int length = 1; length < 6; ++length)
        for (int first = 0; first < 20; ++first)
          for (int last = first; last < first + 5; ++last) {
            bool all = true, none = true;
            for (int key = begin; key < begin + length; ++key)
              for (int position = first; position <= last; ++position) {
                all &= is_visible(key, position, window);
                none &= !is_visible(key, position, window);
              }
            CHECK_EQ(all_visible({begin, begin + length}, first, last, window), all);
            if (none_visible({begin, begin + length}, first, last, window)) CHECK(none);
            if (first == last)
              CHECK_EQ(none_visible({begin, begin + length}, first, last, window), none);
          }
}

TEST(splits_cover_each_key_once) {
  for (int splits : {1, 2, 3, 12, 128})
    for (int begin : {0, 5, 64})
      for (int count = 0; count <= 1000; ++count) {
        const KeyRange keys{begin, begin + count};
        int next = begin, active = 0;
        for (int index = 0; index < splits; ++index) {
          const KeySplit split = key_split(keys, splits, index);
          if (split.keys.begin == split.keys.end) continue;
          CHECK_EQ(split.keys.begin, next);
          next = split.keys.end;
          CHECK_EQ(index, active);  // the first splits are the active ones
          ++active;
          if (next != keys.end) CHECK_EQ((next - split.keys.begin) % kDecodeStepKeys, 0);
        }
        CHECK_EQ(next, keys.end);
        for (int index = 0; index < splits; ++index)
          CHECK_EQ(key_split(keys, splits, index).active, active > 0 ? active : 1);
      }
}

TEST(the_plan_covers_the_rows_and_respects_its_limits) {
  constexpr int kCounters = 16384;
  for (int batch : {1, 3, 700})
    for (int kv_heads : {1, 8, 32})
      for (int rows = 1; rows <= kMaxDecodeRows; ++rows)
        for (int head_size : {32, 64, 96, 128, 256})
          for (int context : {1, 100, 4096, 1 << 20}) {
            const DecodePlan plan =
                decode_plan(batch, kv_heads, rows, head_size, context, 264, kCounters);
            CHECK(plan.row_tiles * plan.tile_rows >= rows);
            CHECK((plan.row_tiles - 1) * plan.tile_rows < rows);
            CHECK(plan.splits >= 1 && plan.splits <= kMaxSplits);
            const int tiles = batch * kv_heads * plan.row_tiles;
            if (plan.splits > 1) {
              CHECK(tiles * plan.splits <= 264);
              CHECK(tiles <= kCounters);
            }
            CHECK_EQ(decode_workspace_floats(batch, kv_heads, plan, head_size) == 0,
                     plan.splits == 1);
          }
}

TEST(merge_groups_fill_the_block_and_not_more) {
  CHECK_EQ(merge_groups(32, 256, 12), 8);
  CHECK_EQ(merge_groups(128, 256, 49), 2);
  CHECK_EQ(merge_groups(512, 256, 16), 1);
  CHECK_EQ(merge_groups(8, 256, 3), 2);
  for (int items = 1; items < 600; ++items)
    for (int splits = 1; splits <= 128; ++splits) {
      const int groups = merge_groups(items, 256, splits);
      CHECK(groups <= splits && (groups == 1 || groups * items <= 256));
      CHECK_EQ(groups & (groups - 1), 0);
    }
}

TEST(prefill_blocks_are_each_tile_of_each_head_once) {
  for (int heads : {1, 4, 12, 32})
    for (int tiles : {1, 2, 7})
      for (int section : {1, 3, 4, 12, 32}) {
        if (section > heads) continue;
        std::set<std::pair<int, int>> seen;
        int last_tile = tiles;
        for (int index = 0; index < heads * tiles; ++index) {
          const PrefillBlock block = prefill_block(index, tiles, heads, section);
          CHECK(block.head >= 0 && block.head < heads && block.tile >= 0 && block.tile < tiles);
          seen.insert({block.head, block.tile});
          CHECK_EQ(block.head / section, index / (section * tiles));
          // Tiles only get lighter within a section.
          const bool first_of_section = index % (section * tiles) == 0;
          if (!first_of_section) CHECK(block.tile <= last_tile);
          last_tile = block.tile;
        }
        CHECK_EQ(seen.size(), static_cast<size_t>(heads) * tiles);
      }
}

TEST(prefill_sections_fit_the_cache_and_hold_whole_groups) {
  // 4096 keys and values of 128 channels are 2 MB a kv head.
  CHECK_EQ(prefill_section_heads(4096, 128, 32, 32, 50 << 20), 16);
  CHECK_EQ(prefill_section_heads(2048, 128, 32, 32, 50 << 20), 32);
  CHECK_EQ(prefill_section_heads(4096, 128, 32, 8, 50 << 20), 32);
  CHECK_EQ(prefill_section_heads(4096, 128, 32, 8, 4 << 20), 4);
  CHECK_EQ(prefill_section_heads(1 << 20, 256, 32, 8, 4 << 20), 4);
  CHECK_EQ(prefill_section_heads(16, 64, 28, 4, 0), 7);
}
