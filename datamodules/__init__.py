"""Data modules: folders of images and boxes to `zoo.batch.Batch`. Import nothing of zoo but its contracts."""
