plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

// The runtime's release is at best the one that the files were exported by.
val executorch = providers.gradleProperty("executorch").get()

android {
    namespace = "edgewise.measure"
    compileSdk = 35
    defaultConfig {
        applicationId = "edgewise.measure"
        minSdk = 24
        targetSdk = 35
        buildConfigField("String", "EXECUTORCH", "\"$executorch\"")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
    buildFeatures { buildConfig = true }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions { jvmTarget = "17" }
    // A model is read as it is; compressed, it would be unpacked into memory first.
    androidResources { noCompress += listOf("onnx", "pte", "safetensors", "u8") }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
    implementation("org.pytorch:executorch-android:$executorch")
}
