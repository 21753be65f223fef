# Tries the whole life of a job with the real program, in a directory of its own:
#   powershell -ExecutionPolicy Bypass -File test.ps1
# For PowerShell 5.1, in ASCII; test.sh is its twin. Every call of the program is a line
# that begins with "Queue" or assigns from it, followed by a check of its exit status.

$ErrorActionPreference = "Stop"
$script:Failed = $false

# Python: "python", unless that is missing, too old, or the Store's alias; then "py -3".
$Python = "python"
$PythonOptions = @()
$Usable = $false
if (Get-Command python -ErrorAction SilentlyContinue) {
    & python -c "import sys; sys.exit(sys.version_info < (3, 8))"
    $Usable = ($LASTEXITCODE -eq 0)
}
if (-not $Usable) {
    $Python = "py"
    $PythonOptions = @("-3")
}

$Program = Join-Path $PSScriptRoot "queuectl.py"
$Name = "queuectl test " + [System.Guid]::NewGuid().ToString("N")
$Dir = Join-Path ([System.IO.Path]::GetTempPath()) $Name
New-Item -ItemType Directory -Path $Dir | Out-Null
$Db = Join-Path $Dir "queue.db"

function Queue {
    & $Python @PythonOptions $Program --db $Db @args
}

function Fail($Message) {
    Write-Host "test.ps1: FAILED: $Message"
    throw "failed"
}

function CheckStatus($What) {
    if ($LASTEXITCODE -ne 0) {
        Fail "${What}: exit status $LASTEXITCODE"
    }
}

function GetJob($Id) {
    $Text = Queue show $Id --json
    CheckStatus "show"
    return ($Text | Out-String | ConvertFrom-Json)
}

# Polls until the job is in that state.
function WaitFor($State, $Id, $Seconds) {
    $Deadline = (Get-Date).AddSeconds($Seconds)
    $Job = GetJob $Id
    while ($Job.state -ne $State) {
        if ((Get-Date) -gt $Deadline) {
            Fail "job $Id is $($Job.state) after $Seconds s, not $State"
        }
        Start-Sleep -Milliseconds 200
        $Job = GetJob $Id
    }
    return $Job
}

# The seconds from the end of one attempt to the start of the next.
function DelayBetween($First, $Second) {
    return (([datetime]$Second.started_at) - ([datetime]$First.finished_at)).TotalSeconds
}

try {
    Write-Host "1. workers start"
    Queue worker start --count 2 | Out-Null
    CheckStatus "worker start"
    $Text = Queue worker list --json
    CheckStatus "worker list"
    $Workers = @($Text | Out-String | ConvertFrom-Json | ForEach-Object { $_ })
    if ($Workers.Count -ne 2) {
        Fail "worker list knows of $($Workers.Count) workers, not of 2"
    }

    Write-Host "2. a good job completes, with its output logged"
    $Good = Queue enqueue --name good "echo Hello Queue"
    CheckStatus "enqueue of the good job"
    WaitFor "completed" $Good 20 | Out-Null
    $Text = Queue logs good
    CheckStatus "logs"
    if (($Text | Out-String).Trim() -ne "Hello Queue") {
        Fail "the log of the good job is: $Text"
    }
    $Text = Queue list --state completed --json
    CheckStatus "list --state completed"
    if (($Text | Out-String) -notmatch "Hello Queue") {
        Fail "list --state completed does not show it"
    }

    Write-Host "3. a failing job is tried again, after growing delays"
    $Bad = Queue enqueue --max-retries 2 --backoff-base "1.5" "exit 3"
    CheckStatus "enqueue of the failing job"
    $Job = WaitFor "dead" $Bad 30
    $History = @($Job.history)
    if ($History.Count -ne 3) {
        Fail "the failing job has $($History.Count) attempts, not 3"
    }
    foreach ($Attempt in $History) {
        if ($Attempt.exit_code -ne 3) {
            Fail "an attempt of the failing job has exit status $($Attempt.exit_code), not 3"
        }
    }
    $FirstDelay = DelayBetween $History[0] $History[1]
    $SecondDelay = DelayBetween $History[1] $History[2]
    Write-Host "   delays $FirstDelay s, $SecondDelay s"
    if ($FirstDelay -lt 1.4) {
        Fail "the first retry came too early"
    }
    if ($SecondDelay -lt 2.1) {
        Fail "the second retry came too early"
    }
    if ($SecondDelay -le $FirstDelay) {
        Fail "the delays do not grow"
    }

    Write-Host "4. it is in the dead letter queue, and comes back from it"
    $Text = Queue dlq list
    CheckStatus "dlq list"
    if (($Text | Out-String) -notmatch "exit 3") {
        Fail "dlq list does not show the dead job"
    }
    if (($Text | Out-String) -match "Hello") {
        Fail "dlq list shows a completed job"
    }
    Queue worker stop | Out-Null
    CheckStatus "worker stop"
    Queue dlq retry $Bad | Out-Null
    CheckStatus "dlq retry"
    $Job = GetJob $Bad
    if ($Job.state -ne "pending") {
        Fail "after dlq retry the job is $($Job.state), not pending"
    }
    $Text = Queue dlq list --json
    CheckStatus "dlq list --json"
    if (($Text | Out-String).Trim() -ne "[]") {
        Fail "dlq list still shows the job after dlq retry"
    }

    Write-Host "5. the workers are gone"
    $Text = Queue worker list --json
    CheckStatus "worker list"
    if (($Text | Out-String).Trim() -ne "[]") {
        Fail "worker list still shows workers after worker stop"
    }
    Write-Host "test.ps1: all checks passed"
} catch {
    $script:Failed = $true
    Write-Host $_.Exception.Message
} finally {
    Queue worker stop --now | Out-Null
    Remove-Item -Recurse -Force -Path $Dir -ErrorAction SilentlyContinue
}

if ($script:Failed) {
    exit 1
}
exit 0
