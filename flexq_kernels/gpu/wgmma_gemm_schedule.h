// Which tiles a cluster of blocks of the wgmma kernel computes, and in which order.
#pragma once

#ifdef __CUDACC__
#define FLEXQ_ANYWHERE __host__ __device__
#else
#define FLEXQ_ANYWHERE
#endif

namespace flexq_kernels::gpu {

// Groups first … last - 1 of a tile.
struct WgmmaPart {
  int tile, first, last;
};

// Whole tiles go round the clusters in turns. The last `split` tiles are laid end to end and cut
// into equal lengths, so that all clusters end together (here 5 tiles for 3 clusters):
//
//   tiles      | 0              | 1              | 2              | 3              | 4 | clusters
//   | 0                         | 1                         | 2                         |
//
// A cut tile is computed by two clusters one after the other: the cluster in front takes the groups
// up to the cut before all else and hands over its sums; the one behind goes on from them after all
// else. So the groups are added up in their order, to the same bits as of a whole tile; and since a
// length is no less than a tile, the one behind does not wait for the one in front.
struct WgmmaSchedule {
  int tiles = 0;
  int split = 0;  // 0, or from `clusters` to twice as many; split * groups * clusters fits an int
  int clusters = 1;
  int groups = 1;

  // What one cluster does: the start of a cut tile, whole tiles, the end of another cut tile.
  struct Cluster {
    int cluster, clusters, groups;
    int whole, split_begin;  // tiles; those of `whole` are its own turns'
    int begin, end;          // of its length of the tiles that are split, in groups

    FLEXQ_ANYWHERE int head() const { return end % groups > 0 ? 1 : 0; }
    FLEXQ_ANYWHERE int tail() const { return begin % groups > 0 ? 1 : 0; }
    FLEXQ_ANYWHERE int inner() const { return end / groups - (begin + groups - 1) / groups; }
    FLEXQ_ANYWHERE int parts() const { return head() + whole + inner() + tail(); }
    FLEXQ_ANYWHERE int steps() const { return whole * groups + end - begin; }

    FLEXQ_ANYWHERE WgmmaPart part(int i) const {
      if (i < head()) {
        return {split_begin + end / groups, 0, end % groups};
      }
      i -= head();
      if (i < whole) return {cluster + i * clusters, 0, groups};
      i -= whole;
      if (i < inner()) {
        return {split_begin + (begin + groups - 1) / groups + i, 0, groups};
      }
      return {split_begin + begin / groups, begin % groups, groups};
    }
  };

  FLEXQ_ANYWHERE Cluster of(int cluster) const {
    const int whole = tiles - split;
    const int length = split * groups;
    return {cluster,
            clusters,
            groups,
            (whole - cluster + clusters - 1) / clusters,
            whole,
            length * cluster / clusters,
            length * (cluster + 1) / clusters};
  }
};

}  // namespace flexq_kernels::gpu

#undef FLEXQ_ANYWHERE
