"""Data modules: folders of images and boxes to `zoo.contract.batch.Batch`. Import nothing of zoo but its contracts."""
